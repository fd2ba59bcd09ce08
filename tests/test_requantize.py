"""What is put into an exported graph after training: attention's products in int8, and what `edgekd tune` tries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny import Bars
from tiny_onnx import VOCABULARY, classifier, feed, quantized

from edgekd import spec
from edgekd.distill.data import Tokens
from edgekd.errors import ExportError
from edgekd.onnxio import bridge, export, files, parity, products, requantize, rewrite, skip_layer_norm
from edgekd.onnxio.audit import audit, session
from edgekd.onnxio.names import module_path
from edgekd.progress import Progress

PRODUCTS = "*.attention.self.MatMul*"
QUANT = spec.Quant(calibration="-", method="minmax")
QUIET = Progress(quiet=True)


def examples(count: int = 24) -> Tokens:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 20, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, VOCABULARY, offsets[-1]).astype(np.int32)
    return Tokens(ids, np.zeros_like(ids), offsets, np.zeros(count, np.int64), 0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("requantize")
    for scheme in ("u8s8_static", "s8s8_static", "u8s8_dynamic"):
        export.export_quantized(quantized(classifier(), scheme), folder / scheme, opset=17)
    return {path.name: path for path in folder.iterdir()}


def rewritten(path: Path, quant: spec.Quant, graph: Any = "plain") -> list[str]:
    return [step for step, _, _ in rewrite.steps(path, spec.Export(graph=graph), quant, examples())]


def copied(path: Path, folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(path.read_bytes())
    return folder / "model.onnx"


def int8(path: Path, keep_float: tuple[str, ...]) -> set[str]:
    return {row["node"] for row in audit(path, keep_float)["multiplications"] if row["int8"]}


@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static"])
def test_attentions_products_run_in_int8_unless_keep_float_names_them(
    scheme: str, paths: dict[str, Path], tmp_path: Path
) -> None:
    before = int8(paths[scheme], (PRODUCTS,))
    products = {f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("MatMul", "MatMul_1")}
    path = copied(paths[scheme], tmp_path)
    assert not rewritten(path, spec.Quant(scheme=scheme, keep_float=(PRODUCTS,)))
    assert path.read_bytes() == paths[scheme].read_bytes()
    first = ("bert.encoder.layer.0.*",)
    assert rewritten(path, spec.Quant(scheme=scheme, method="minmax", keep_float=first)) == ["attention"]
    assert int8(path, (PRODUCTS,)) == before | {name for name in products if "layer.1" in name}
    path = copied(paths[scheme], tmp_path)
    assert rewritten(path, spec.Quant(scheme=scheme, method="minmax")) == ["attention"]
    assert int8(path, ()) == before | products


def test_without_fixed_ranges_attentions_products_stay_and_the_audit_objects(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    path = copied(paths["u8s8_dynamic"], tmp_path)
    assert not rewritten(path, spec.Quant(scheme="u8s8_dynamic"))
    with pytest.raises(ExportError, match=r"runs in float though nothing keeps it there: .*attention\.self\.MatMul"):
        audit(path, ())


def values(model: onnx.ModelProto, names: list[str], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, session(opened, optimize=False).run(names, given), strict=True))


@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static"])
def test_a_tensor_is_rounded_by_half_a_step_at_most_within_the_range_that_was_observed(
    scheme: str, paths: dict[str, Path]
) -> None:
    model, calibration = files.read(paths[scheme]), examples()
    places = requantize.attention(model)
    made = requantize.put(model, places, requantize.grids(model, places, calibration, "minmax", 100.0))
    ids, mask, _ = calibration.gather(np.array([3]))
    given = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for tensor in {tensor for tensor, _ in places}:
        quantizes = next(n for n in made.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor)
        step, point = (constants[name] for name in quantizes.input[1:])
        floats = next(n.output[0] for n in made.graph.node if n.input and n.input[0] == quantizes.output[0])
        found = values(made, [tensor, floats], given)
        exact, rounded = (array.astype(np.float64) for array in found.values())
        assert 0 < np.abs(exact - rounded).max() <= 0.501 * step + 1e-6, tensor  # 0 falls between two steps: 0.5 more
        assert point.dtype == (np.int8 if scheme == "s8s8_static" else np.uint8)


def test_the_answers_stay_close_and_a_graph_that_is_given_is_not_changed(paths: dict[str, Path]) -> None:
    model = files.read(paths["u8s8_static"])
    content = model.SerializeToString(deterministic=True)
    places = requantize.attention(model)
    chosen = requantize.grids(model, places, examples(), "minmax", 100.0)
    made = requantize.put(model, places, chosen)
    assert model.SerializeToString(deterministic=True) == content
    feeds = [feed(3, 9, seed=9, padding=4), feed(1, 1, seed=2), feed(2, 20, seed=4)]
    labels = np.zeros(6, np.int64)
    row = parity.gate_graphs(model, made, chosen, feeds, labels, min_agreement=0.5, max_score_gap=1.0)
    scale = np.abs(np.concatenate([session(model).run(None, one)[0] for one in feeds])).max()
    assert 0 < row["max_abs"] < 0.2 * scale


def test_a_tensor_that_loses_too_much_is_named_with_the_way_out(paths: dict[str, Path]) -> None:
    model = files.read(paths["u8s8_static"])
    places = requantize.attention(model)
    chosen = requantize.grids(model, places, examples(), "minmax", 100.0)
    lost = next(name for name in chosen if "layer.1" in name)
    chosen[lost] = chosen[lost]._replace(scale=chosen[lost].scale * np.float32(1e-4))  # hardly any of its range
    feeds = [feed(8, 3 + i, seed=i) for i in range(3)]
    limits = {"min_agreement": 1.0, "max_score_gap": 0.0}
    with pytest.raises(
        ExportError, match=rf"{re.escape(lost)} departs most, .* keep_float, e\.g\. '\*\.attention\.self\.MatMul\*'"
    ):
        parity.gate_graphs(model, requantize.put(model, places, chosen), chosen, feeds, np.zeros(24), **limits)


@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static"])
def test_a_corrupted_constant_is_named_once_attention_is_in_int8(scheme: str, paths: dict[str, Path]) -> None:
    model = files.read(paths[scheme])
    places = requantize.attention(model)
    chosen = requantize.grids(model, places, examples(), "minmax", 100.0)
    made = requantize.put(model, places, chosen)
    added = [f"{tensor}_{role}" for tensor in chosen for role in ("scale", "zero_point")]
    assert len(added) == 16
    for name in [*added, "bert.pooler.dense.input_scale", "bert.encoder.layer.0.intermediate.dense.weight"]:
        tensor = next(t for t in made.graph.initializer if t.name == name)
        kept = onnx.numpy_helper.to_array(tensor)
        wrong = np.asarray(kept * 1.5 if kept.dtype == np.float32 else kept + 1, kept.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, name))
        with pytest.raises(ExportError, match=rf"^{re.escape(name)} (is|has changed) "):
            parity.gate_graphs(model, made, chosen, [], np.zeros(0), min_agreement=0.0, max_score_gap=1.0)
        tensor.CopyFrom(onnx.numpy_helper.from_array(kept, name))


def test_a_tensor_that_is_always_zero_cannot_be_quantized(paths: dict[str, Path]) -> None:
    model = files.read(paths["u8s8_static"])
    weight = next(t for t in model.graph.initializer if t.name == "bert.encoder.layer.0.attention.self.value.weight")
    bias = next(t for t in model.graph.initializer if t.name.endswith("layer.0.attention.self.value.bias_int32"))
    for tensor in (weight, bias):
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(array), tensor.name))
    with pytest.raises(
        ExportError, match=r"layer\.0/attention/self/Transpose_1 has the range .*: it cannot be quantized"
    ):
        requantize.grids(model, requantize.attention(model), examples(), "minmax", 100.0)


def test_a_product_that_loses_too_much_comes_first_by_every_measure_and_is_proposed_for_float(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    model, calibration = files.read(paths["u8s8_static"]), examples()
    places = requantize.attention(model)
    chosen = requantize.grids(model, places, calibration, "minmax", 100.0)
    assert bridge.factors(model) == [] and products.measure(paths["u8s8_static"], calibration, QUIET) is None
    lost, (product,) = next(place for place in places if "layer.1" in place[0])
    chosen[lost] = chosen[lost]._replace(scale=chosen[lost].scale * np.float32(1e-4))  # hardly any of its range
    made = requantize.put(model, places, chosen)
    files.write(made, tmp_path / "model.onnx")
    bars = Bars()
    found = products.measure(tmp_path / "model.onnx", calibration, bars)
    assert found is not None and bars.done == bars.total
    assert [len(found[kind]) for kind in ("layers", "quantizers")] == [4, 8]
    name = module_path(product)
    assert found["layers"][0]["layer"] == found["keep_float"][0]["layer"] == name
    assert found["quantizers"][0]["quantizer"] == f"{name}: {lost}"
    assert max(found["layers"], key=lambda row: row["won_back"])["layer"] == name
    given = [feed(2, 9, seed=3), feed(1, 4)]
    every = products.in_float(made, set(bridge.factors(made)))
    without = requantize.put(model, [place for place in places if place[1] != (product,)], chosen)
    for one, other in (
        (every, model),
        (products.in_float(made, {f for f in bridge.factors(made) if f[0] == product}), without),
    ):
        for inputs in given:
            np.testing.assert_array_equal(*(session(graph).run(None, inputs)[0] for graph in (one, other)))


def test_outputs_that_one_node_reads_are_quantized_and_gelu_stays_one_node(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    model = files.read(paths["u8s8_static"])
    places = requantize.outputs(model)
    path = copied(paths["u8s8_static"], tmp_path)
    assert rewritten(path, spec.Quant(method="minmax", keep_float=(PRODUCTS,)), "requantized") == ["outputs"]
    found = audit(tmp_path / "model.onnx", (PRODUCTS,))["operators"]
    assert found["Gelu"] == 2 and found["QGemm"] == 14
    requantized = [n for n in files.read(tmp_path / "model.onnx").graph.node if n.name.endswith("Gemm/QuantizeLinear")]
    assert len(requantized) == len(places) == 11  # two layers of five, and the pooler's; not the classifier's


def test_skip_layer_normalization_computes_the_same(paths: dict[str, Path], tmp_path: Path) -> None:
    model = files.read(paths["u8s8_static"])
    made = skip_layer_norm.apply(model)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("SkipLayerNormalization") == 4 and kinds.count("LayerNormalization") == 1  # the embeddings'
    for given in (feed(1, 7), feed(3, 9, padding=4)):
        one, other = (session(graph).run(None, given)[0] for graph in (model, made))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(ExportError, match="no sum of two tensors"):
        skip_layer_norm.apply(made)
