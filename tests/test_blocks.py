"""Four-bit weights in blocks: the same integers in torch and in the file, and the same answers from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny import bert
from tiny_onnx import classifier, feed, logits, quantized

from edgekd import shape, ship, spec
from edgekd.errors import ExportError, TargetError
from edgekd.onnxio import export, files, nibbles, signature, sizes
from edgekd.onnxio.audit import audit, session
from edgekd.onnxio.parity import gate
from edgekd.onnxio.passes import block_weights
from edgekd.quant import blocks, replace
from edgekd.quant.calibrate import calibrate_on

FEEDS = [feed(1, 1), feed(1, 64, seed=1), feed(3, 17, seed=2, padding=16)]
EXAMPLE = {"input_ids": torch.tensor([[2, 40, 50, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: Any) -> tuple[Any, Path]:
    model, path = quantized(classifier(), "w4_block"), tmp_path_factory.mktemp("blocks") / "model.onnx"
    export.export_quantized(model, path, opset=17)
    return model, path


def by_module(path: Path) -> dict[str, tuple[onnx.NodeProto, dict[str, int], np.ndarray, np.ndarray]]:
    """Module -> (node on 4-bit weights, attributes, bytes, scales), read without the code that wrote them."""
    graph = files.read(path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    cast = {
        node.output[0]: arrays[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in arrays
    }
    found = {}
    for node in graph.node:
        if node.domain == "com.microsoft":
            name = node.name.strip("/").replace("/", ".").rpartition(".")[0]
            data = node.input[0] if node.op_type == "GatherBlockQuantized" else node.input[1]
            found[name] = (node, {a.name: a.i for a in node.attribute}, arrays[data], cast[node.input[2]])
    return found


@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=3, max_side=9), elements=st.integers(-8, 7)), st.integers(0, 20))
def test_unpacking_nibbles_undoes_packing_whatever_the_width(values: np.ndarray, more: int) -> None:
    width = values.shape[-1]
    packed = nibbles.pack(values, width + more)
    assert packed.dtype == np.uint8 and packed.shape == (*values.shape[:-1], -(-(width + more) // 2))
    np.testing.assert_array_equal(nibbles.unpack(packed, width), values)
    assert not nibbles.unpack(packed, 2 * packed.shape[-1])[..., width:].any()


def test_the_low_nibble_comes_first_and_8_stands_for_0() -> None:
    assert nibbles.pack(np.array([0, -8, 7], np.int8), 3).tolist() == [0x08, 0x8F]


@given(st.integers(1, 5000), st.sampled_from([32, 64, 128]))
def test_a_block_is_a_power_of_two_and_no_longer_than_a_row_needs(width: int, block: int) -> None:
    size = shape.block_size(width, block)
    assert 16 <= size <= block and size & (size - 1) == 0
    assert size == block or (size >= width and (size == 16 or size // 2 < width))


def test_the_integers_in_the_file_are_those_of_the_trained_module(exported: tuple[Any, Path]) -> None:
    model, path = exported
    found = by_module(path)
    assert set(found) == {n for n, m in model.named_modules() if type(m).__name__ in ("QuantLinear", "QuantEmbedding")}
    for name, (_, options, data, scales) in found.items():
        module = model.get_submodule(name)
        module.weight_quant.skip_create_quant_tensor = False
        expected = module.quant_weight()  # Brevitas' own account of it
        module.weight_quant.skip_create_quant_tensor = True
        width = module.weight.shape[1]
        low_high = np.stack([data & 15, data >> 4], -1).reshape(len(data), -1).astype(np.int64) - 8
        np.testing.assert_array_equal(low_high[:, :width], expected.int().numpy(), err_msg=name)
        assert not low_high[:, width:].any() and scales.dtype == np.float16
        dequantized = low_high[:, :width] * np.repeat(scales, options["block_size"], 1)[:, :width].astype(np.float64)
        np.testing.assert_allclose(dequantized, expected.value.detach().numpy(), rtol=0, atol=1e-7, err_msg=name)


def test_weights_are_rounded_to_a_seventh_of_their_blocks_maximum() -> None:
    model = replace.quantize(bert(hidden_size=32, intermediate_size=80), "w4_block", (), EXAMPLE, 32)
    layer = model.bert.encoder.layer[0].output.dense  # rows of 80 numbers: blocks of 32, 32 and 16
    found = blocks.block_weights(model)["bert.encoder.layer.0.output.dense"]
    weight = layer.weight.detach().double().numpy()
    assert found.size == 32 and found.scales.shape == (32, 3) and np.abs(found.integers).max() == 7
    for i, part in enumerate((slice(0, 32), slice(32, 64), slice(64, 80))):
        scale = (np.abs(weight[:, part]).max(1) / 7).astype(np.float16)
        np.testing.assert_array_equal(found.scales[:, i], scale)
        exact = weight[:, part] / scale[:, None].astype(np.float64)
        assert np.abs(found.integers[:, part] - exact).max() <= 0.5 + 1e-4
    fake = layer.weight_quant(layer.weight).detach().numpy()
    np.testing.assert_array_equal(found.dequantized(), fake)


def test_a_row_of_zeros_stays_zero_and_has_a_finite_gradient() -> None:
    model = replace.quantize(bert(), "w4_block", (), EXAMPLE).train()
    table = model.bert.embeddings.word_embeddings
    with torch.no_grad():
        table.weight[0] = 0
        table.weight[1] = 1e-12
    fake = table.weight_quant(table.weight)
    assert not fake[:2].any() and torch.isfinite(fake).all()
    model(**EXAMPLE).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert table.weight.grad[40].abs().sum() > 0 and not table.weight.grad[0].any()


@pytest.mark.parametrize("optimize", [False, True], ids=["plain", "optimized"])
def test_onnxruntime_computes_in_float_what_torch_fake_quantized(exported: tuple[Any, Path], optimize: bool) -> None:
    model, path = exported
    runner = session(files.read(path), optimize=optimize)
    for arrays in FEEDS:
        expected = logits(model, arrays)
        found = runner.run(["logits"], arrays)[0]
        np.testing.assert_allclose(
            found, expected, atol=1e-5 * np.abs(expected).max()
        )  # no 8-bit activations in between


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("hidden", [24, 40, 136])
def test_widths_that_no_block_divides_are_filled_up(block: int, hidden: int, tmp_path: Path) -> None:
    changes = dict(hidden_size=hidden, intermediate_size=hidden + 3, num_attention_heads=2, num_hidden_layers=1)
    model = replace.quantize(classifier(**changes), "w4_block", (), EXAMPLE, block).eval()
    export.export_quantized(model, tmp_path / "model.onnx", opset=17)
    for optimize in (False, True):
        runner = session(files.read(tmp_path / "model.onnx"), optimize=optimize)
        for arrays in FEEDS:
            expected = logits(model, arrays)
            np.testing.assert_allclose(runner.run(None, arrays)[0], expected, atol=1e-5 * np.abs(expected).max())


def test_a_table_of_odd_width_is_refused_by_name_before_training() -> None:
    model = bert(hidden_size=33, num_attention_heads=3)
    with pytest.raises(TargetError, match=r"rows of bert\.embeddings\.word_embeddings hold 33 numbers.*keep_float"):
        replace.quantize(model, "w4_block", (), EXAMPLE)
    replace.quantize(model, "w4_block", ("bert.embeddings.*",), EXAMPLE)


def test_a_kept_layer_stays_float_in_the_file(tmp_path: Path) -> None:
    keep = ("classifier", "bert.embeddings.position_embeddings", "*.attention.self.MatMul*")
    model = quantized(classifier(), "w4_block", keep)
    export.export_quantized(model, tmp_path / "model.onnx", opset=17, keep_float=keep)
    assert not {"classifier", "bert.embeddings.position_embeddings"} & set(by_module(tmp_path / "model.onnx"))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in files.read(tmp_path / "model.onnx").graph.initializer}
    np.testing.assert_array_equal(stored["classifier.weight"], model.classifier.weight.detach().numpy())
    rows = {row["node"]: row["kind"] for row in audit(tmp_path / "model.onnx", keep)["multiplications"]}
    assert rows["classifier.Gemm"] == "float" and rows["bert.pooler.dense.MatMulNBits"] == "4-bit weights"


def test_nothing_is_calibrated_where_activations_are_float() -> None:
    model = replace.quantize(bert(), "w4_block", (), EXAMPLE)
    assert replace.act_quantizers(model) == {}
    assert calibrate_on(model, spec.Quant(scheme="w4_block"), []) == {}


def test_the_parity_gate_passes_a_sound_file_and_names_a_corrupted_scale(
    exported: tuple[Any, Path], tmp_path: Path
) -> None:
    model, path = exported
    labels = np.concatenate([logits(model, arrays) for arrays in FEEDS]).argmax(1)
    report = gate(model, path, FEEDS, labels, min_agreement=1.0, max_score_gap=0.0)
    assert report["module"]["error"] < 1e-4
    graph = files.read(path)
    tensor = next(
        t for t in graph.graph.initializer if t.name == "bert.encoder.layer.1.intermediate.dense.weight_scale"
    )
    tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
    files.write(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"^bert\.encoder\.layer\.1\.intermediate\.dense\.weight_scale is "):
        gate(model, tmp_path / "model.onnx", FEEDS, labels, min_agreement=0.9, max_score_gap=0.1)


LINEAR = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (float[n,2] y) { y = MatMul(x, w) }"""


def linear(weight: np.ndarray) -> ir.Model:
    model = onnx.parser.parse_model(LINEAR)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), "w"))
    model.graph.node[0].name = "/a/MatMul"
    return ir.from_proto(model)


def test_a_graph_that_holds_other_numbers_than_the_module_is_an_error() -> None:
    given = blocks.Blocks(np.array([[1, 2, 3, 7], [0, -7, 4, 1]], np.int8), np.array([[0.5], [2]], np.float16), 16)
    graph = linear(given.dequantized().T)
    assert block_weights.run(graph, {"a": given}) == 1
    block_weights.ensures(graph, {"a": given})
    assert [node.op_type for node in graph.graph] == ["Cast", "MatMulNBits"]
    with pytest.raises(ExportError, match="a: the graph does not hold the numbers"):
        block_weights.run(linear(given.dequantized().T * 1.001), {"a": given})
    with pytest.raises(ExportError, match="/a/MatMul: uses the weight of a in float"):
        block_weights.ensures(linear(given.dequantized().T), {"a": given})


def test_the_bundle_asks_for_a_runtime_that_has_the_operators(exported: tuple[Any, Path]) -> None:
    found = signature.signature(exported[1])
    assert found["domains"] == {"com.microsoft": 1}
    assert found["operators"] == {"com.microsoft": ["GatherBlockQuantized", "MatMulNBits"]}
    assert ship._minimum(found, "7.7") == "1.22"


def test_the_size_is_known_before_and_every_byte_of_a_weight_has_its_kind(tmp_path: Path) -> None:
    model = classifier(hidden_size=128, intermediate_size=512, num_hidden_layers=4, vocab_size=3000)
    quant = spec.Quant(scheme="w4_block", block=64)
    found = shape.tensors(model.config.to_dict(), model.config.num_labels)
    assert found is not None
    replace.quantize(model, "w4_block", (), EXAMPLE, 64)
    export.export_quantized(model.eval(), tmp_path / "model.onnx", opset=17)
    rows = sizes.table(tmp_path / "model.onnx")
    stored = {kind: sum(row["bytes"] for row in rows if row["kind"] == kind) for kind in ("embedding", "linear")}
    numbers = {kind: sum(t.count for t in found if t.kind == kind) for kind in ("embedding", "linear")}
    assert stored["embedding"] == numbers["embedding"] * (1 / 2 + 2 / 64)
    biases = 4 * sum(t.count for t in found if t.kind == "bias")
    assert stored["linear"] == numbers["linear"] * (1 / 2 + 2 / 64) + biases
    least, expected = shape.file_bytes(found, quant)
    size = (tmp_path / "model.onnx").stat().st_size
    assert least < size and abs(size - expected) < 0.05 * expected
