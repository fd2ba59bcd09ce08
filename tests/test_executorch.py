"""Claims about ExecuTorch files: the shipped graph's integers and ranges, in one delegate, for every length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_onnxio_families import STUDENTS, family, inputs
from test_passes import f32, linear, model, ops, s8, scales
from tiny_onnx import exported, feed, quantized

from edgekd import runtimes
from edgekd.errors import BenchError, ExportError
from edgekd.onnxio import bridge, export, passes
from edgekd.onnxio.audit import session
from edgekd.onnxio.files import read, write
from edgekd.onnxio.xnnpack import Delegable
from edgekd.runtimes import converting

needed = pytest.mark.skipif(
    runtimes.converters("executorch") is None, reason=f"not installed: {runtimes.entry('executorch').extra}"
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("student"), num_hidden_layers=1)


def widened(graph: Any, **feeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a graph answers before and after the pass, in onnxruntime without optimizations."""
    after = passes.apply(graph, passes.WIDENED)
    one, other = (session(m, optimize=False).run(None, feeds)[0] for m in (graph, after))
    return one, other


def test_a_layer_shown_the_ends_of_its_range_answers_to_the_bit_as_before(student: Path) -> None:
    one, other = widened(read(student), **feed(3, 17, 3, 5))
    assert np.array_equal(one, other)


def test_every_row_then_spans_the_whole_range_and_weights_only_zeros_with_it() -> None:
    after = passes.apply(linear(), ("constants", "fold_clip", "fold_transpose", *passes.WIDENED))
    assert ops(after).count("Pad") == 2
    (weight,) = bridge.stored(after).values()
    assert weight.integers.shape == (4, 5) and not weight.integers[:, 3:].any()
    product = next(node for node in after.graph.node if node.op_type == "MatMul")
    after.graph.output[0].CopyFrom(type(after.graph.output[0])(name=product.input[0], type=after.graph.input[0].type))
    after.graph.output[0].type.tensor_type.ClearField("shape")
    shown = session(after, optimize=False).run(None, {"x": f32(1, 6, 3)})[0]
    step = np.float32(0.02)
    np.testing.assert_allclose(shown.min(-1), -120 * step)
    np.testing.assert_allclose(shown.max(-1), 135 * step)


@pytest.mark.parametrize("name", ["Albert", "Bert", "DistilBert", "Electra", "MPNet", "Roberta"])
def test_what_the_delegate_is_given_answers_as_the_graph_does(name: str, tmp_path: Path) -> None:
    made = quantized(family(name), keep_float=STUDENTS[name])
    export.export_quantized(made, tmp_path / "model.onnx", opset=17, keep_float=STUDENTS[name])
    wider = passes.apply(read(tmp_path / "model.onnx"), passes.WIDENED)
    known = bridge.stored(wider)
    module = Delegable(passes.apply(wider, passes.FOLDED), known).eval()
    layers = {weight.name for weight in known.values() if not weight.table}
    assert sum(len(parts) > 1 for parts in module.matrices.values()) >= len(layers) > 0
    for length, padding in ((5, 0), (17, 6)):
        arrays = {key: array for key, array in inputs(made, 1, length, padding).items() if key in module.inputs}
        with torch.no_grad():
            answer = module(*(torch.from_numpy(arrays[key]) for key in module.inputs)).numpy()
        expected = session(read(tmp_path / "model.onnx")).run(None, arrays)[0]
        assert np.abs(answer - expected).max() < 0.02 * np.abs(expected).max()


@needed
def test_the_whole_student_is_one_delegate_with_the_integers_and_the_answers_of_the_shipped_file(
    student: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.pte"
    found = converting.convert("executorch", student, file, (16, 32))
    assert "error" not in found, found
    known = bridge.stored(read(student)).values()
    assert {weight.name for weight in known} == set(found["int8"]) and found["float"] == ["classifier.weight"]
    assert found["delegates"] == 1 and found["delegated_nodes"] > 0.7 and 0 < found["delegated_time"] <= 1
    assert not {name for name in found["outside"] if "linear" in name or "mm" in name}
    opened = runtimes.get("executorch").load(file, 1)
    exact = session(read(student))
    apart = []
    for seed in range(40):
        feeds = feed(1, 1 + seed % 32, seed)
        expected = exact.run(None, feeds)[0]
        apart.append(np.linalg.norm(opened.run(feeds) - expected) / np.linalg.norm(expected))
    assert np.median(apart) < 1e-3 and max(apart) < 0.05  # where a number lies between two steps, rounding may differ
    with pytest.raises(BenchError, match="33 tokens, and the file goes up to 32"):
        opened.run(feed(1, 33))


@needed
def test_a_layer_that_would_lose_its_integers_is_named(tmp_path: Path) -> None:
    text = """g (int64[b,s] input_ids) => (float[b,5] logits) {
        taken = Gather(table, input_ids)
        turned = Transpose<perm = [0, 2, 1]>(taken)
        q = QuantizeLinear(turned, x_scale, x_zero)
        x = DequantizeLinear(q, x_scale, x_zero)
        kernel = DequantizeLinear<axis = 0>(integers, w_scale, w_zero)
        seen = Conv<kernel_shape = [3], pads = [1, 1]>(x, kernel)
        logits = ReduceMean<axes = [2], keepdims = 0>(seen)
    }"""
    graph = model(
        text, opset=17, table=f32(32, 8), integers=s8(5, 8, 3), w_scale=scales(5), w_zero=np.zeros(5, np.int8),
        x_scale=np.float32(0.02), x_zero=np.uint8(120),
    )  # fmt: skip
    write(graph, tmp_path / "model.onnx")
    found = converting.convert("executorch", tmp_path / "model.onnx", tmp_path / "model.pte", (16,))
    assert "integers (1 in all) is int8 in the graph and would be float" in found["error"]
    assert not (tmp_path / "model.pte").exists()


def test_an_operator_that_torch_has_not_is_named_before_anything_is_lowered() -> None:
    with pytest.raises(ExportError, match="Hardmax"):
        Delegable(model("g (float[b,3] x) => (float[b,3] y) { y = Hardmax(x) }"), {})
