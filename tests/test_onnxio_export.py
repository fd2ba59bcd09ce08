"""The exported file: what it holds, what it computes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_onnx import classifier, feed, logits, quantized

from edgekd.errors import ExportError
from edgekd.onnxio import export, passes
from edgekd.onnxio.audit import session
from edgekd.onnxio.files import read

SHAPES = [feed(1, 1), feed(1, 64, seed=1), feed(3, 17, seed=2, padding=16)]
SCHEMES = ("u8s8_static", "u8s7_static", "s8s8_static", "u8s8_dynamic", "w4_block")


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> dict[str, tuple[Any, Path]]:
    """(torch model, exported file) by scheme; ``float`` is not quantized, ``learned`` has learned scales."""
    folder = tmp_path_factory.mktemp("export")
    models = {"float": classifier()} | {scheme: quantized(classifier(), scheme) for scheme in SCHEMES}
    models["learned"] = quantized(classifier(), learned=True)
    models["per tensor"] = quantized(classifier(), per_channel=False)
    for name, model in models.items():
        write = export.export_float if name == "float" else export.export_quantized
        write(model, folder / f"{name}.onnx", opset=17)
    return {name: (model, folder / f"{name}.onnx") for name, model in models.items()}


@pytest.mark.parametrize("name", ["float", "learned", "per tensor", *SCHEMES])
@pytest.mark.parametrize("optimize", [False, True], ids=["plain", "optimized"])
def test_onnxruntime_answers_what_torch_answers(files: Any, name: str, optimize: bool) -> None:
    model, path = files[name]
    runner = session(read(path), optimize=optimize)
    for arrays in SHAPES:
        found, expected = runner.run(["logits"], arrays)[0], logits(model, arrays)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, atol=1e-5 if name == "float" else 0.02 * np.abs(expected).max())
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(("name", "saturates"), [("u8s8_static", True), ("u8s7_static", False)])
def test_seven_bit_weights_never_leave_the_16_bits_of_avx2(files: Any, name: str, saturates: bool) -> None:
    graph = read(files[name][1]).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t).astype(np.int64) for t in graph.initializer}
    scaled = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    weights = [tensors[scaled[node.input[1]]] for node in graph.node if node.op_type == "Gemm"]
    assert len(weights) == 14
    # VPMADDUBSW adds the products of two neighbours along the inner dimension; 255 is the largest activation.
    worst = max(int(np.abs(w[::2] + w[1::2]).max()) for w in weights)
    assert (255 * worst > 2**15 - 1) is saturates


@pytest.mark.parametrize("name", ["float", *SCHEMES])
def test_masked_tokens_do_not_change_the_answer(files: Any, name: str) -> None:
    runner = session(read(files[name][1]))
    one = feed(1, 9, seed=3)
    padded = {key: np.pad(array, ((0, 0), (0, 7))) for key, array in one.items()}
    assert runner.run(None, one)[0].argmax() == runner.run(None, padded)[0].argmax()
    np.testing.assert_allclose(runner.run(None, padded)[0], runner.run(None, one)[0], atol=0.02)


@pytest.mark.parametrize("name", ["float", *SCHEMES])
def test_the_inputs_are_the_real_ones_with_dynamic_batch_and_sequence(files: Any, name: str) -> None:
    graph = read(files[name][1]).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert not {value.name for value in graph.input} & {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        assert [d.dim_param for d in value.type.tensor_type.shape.dim] == ["batch", "sequence"]
    assert [value.name for value in graph.output] == ["logits"]


@pytest.mark.parametrize("name", ["float", *SCHEMES])
def test_the_file_is_stamped_for_old_runtimes_and_says_nothing_else(files: Any, name: str) -> None:
    model = read(files[name][1])
    own = [("com.microsoft", 1)] if name == "w4_block" else []
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17), *own]
    assert model.ir_version <= 9
    assert not model.metadata_props and not model.doc_string and not model.graph.doc_string
    assert not model.producer_version and not model.graph.value_info
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize("name", ["float", "u8s8_static", "w4_block"])
def test_two_exports_of_one_model_are_the_same_bytes(files: Any, name: str, tmp_path: Path) -> None:
    model, path = files[name]
    write = export.export_float if name == "float" else export.export_quantized
    write(model, tmp_path / "again.onnx", opset=17)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("scheme", ["u8s8_static", "w4_block"])
def test_exporting_leaves_the_model_as_it_was(scheme: str, tmp_path: Path) -> None:
    model = quantized(classifier(seed=5), scheme).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export.export_quantized(model, tmp_path / "model.onnx", opset=17)
    assert model.training and all(module.training for module in model.bert.encoder.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert np.isfinite(logits(model.eval(), feed(1, 5))).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_and_embeddings_are_integers_and_nothing_float_is_large(files: Any, scheme: str) -> None:
    model, path = files[scheme]
    tensors = {t.name: t for t in read(path).graph.initializer}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.endswith(".weight"):
            assert tensors[name].data_type == getattr(onnx.TensorProto, "UINT8" if scheme == "w4_block" else "INT8"), (
                name
            )
    floats = [t for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert max(np.prod(t.dims) for t in floats) <= 48  # biases, norms and scales only
    assert all(np.abs(onnx.numpy_helper.to_array(t)).max() < 1e30 for t in floats)


def test_every_int32_bias_has_the_scale_of_its_input_times_its_weight(files: Any) -> None:
    graph = read(files["u8s8_static"][1]).graph
    made = {node.output[0]: node for node in graph.node}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    assert len(gemms) == 2 * 6 + 2  # a layer's linear parts, pooler and classifier
    for node in gemms:
        x, w, b = ([arrays.get(name) for name in made[value].input] for value in node.input)
        assert b[0].dtype == np.int32 and not b[2].any()
        np.testing.assert_array_equal(b[1], x[1] * w[1])


def test_query_key_and_value_share_one_quantizer(files: Any) -> None:
    graph = read(files["u8s8_static"][1]).graph
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 2 * 4 + 2  # a layer: attention, its output, two in the feed-forward; pooler, classifier


@pytest.mark.parametrize("name", ["float", "u8s8_static", "w4_block"])
def test_shapes_are_computed_once_and_nothing_is_left_to_fold(files: Any, name: str) -> None:
    counts = [node.op_type for node in read(files[name][1]).graph.node]
    assert counts.count("Shape") == 2  # of the sequence, for the positions; of batch and sequence, for attention
    assert counts.count("Concat") <= 2
    assert not {"Expand", "Constant", "Identity", "Clip"} & set(counts)


def test_the_last_layer_runs_for_the_first_token_only_in_float_graphs_too(files: Any) -> None:
    for name in ("float", "u8s8_static", "w4_block"):
        graph = read(files[name][1]).graph
        slices = [node for node in graph.node if node.op_type == "Slice" and node.name.endswith("_first")]
        assert slices, name


def test_node_names_are_the_modules_paths(files: Any) -> None:
    names = {node.name for node in read(files["u8s8_static"][1]).graph.node}
    assert "/bert/encoder/layer.0/attention/self/query/Gemm" in names
    assert not [name for name in names if "wrapped" in name or "export_handler" in name]


def test_another_opset_can_be_asked_for(tmp_path: Path) -> None:
    model = classifier(num_hidden_layers=1)
    export.export_float(model, tmp_path / "model.onnx", opset=19)
    graph = read(tmp_path / "model.onnx")
    assert graph.opset_import[0].version == 19 and graph.ir_version == 9
    np.testing.assert_allclose(session(graph).run(None, feed(2, 5))[0], logits(model, feed(2, 5)), atol=1e-5)


@pytest.mark.parametrize("opset", [11, 16, 21])
def test_an_opset_that_cannot_be_written_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} cannot be exported; choose one of 17 to 20"):
        export.export_float(classifier(), tmp_path / "model.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_a_half_precision_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"embeddings\.weight is torch\.bfloat16; export a float32 copy"):
        export.export_float(classifier().bfloat16(), tmp_path / "model.onnx", opset=17)


def test_a_model_that_reads_neither_texts_nor_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Linear\.forward takes neither input_ids nor pixel_values"):
        export.export_float(torch.nn.Linear(2, 2), tmp_path / "model.onnx", opset=17)


class Picky(torch.nn.Module):
    """Takes no mask, and cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor) -> Any:
        raise RuntimeError("no such luck")


def test_what_the_exporter_meets_is_reported_with_the_models_name(tmp_path: Path) -> None:
    assert export.accepted_inputs(Picky()) == ("input_ids",)
    with pytest.raises(ExportError, match="Picky cannot be exported to ONNX: no such luck"):
        export.export_float(Picky(), tmp_path / "model.onnx", opset=17)
    assert not list(tmp_path.iterdir())


def test_a_large_float_tensor_is_an_error_unless_it_is_named(tmp_path: Path) -> None:
    keep = ("bert.encoder.layer.1.output.dense",)
    model = quantized(classifier(intermediate_size=1024), keep_float=keep)  # 32 x 1024 x 4 bytes = 128 KiB
    with pytest.raises(ExportError, match=r"bert\.encoder\.layer\.1\.output\.dense\.weight.*above 64 KiB.*keep_float"):
        export.export_quantized(model, tmp_path / "model.onnx", opset=17)
    assert not list(tmp_path.iterdir())
    export.export_quantized(model, tmp_path / "model.onnx", opset=17, keep_float=keep)
    assert (tmp_path / "model.onnx").stat().st_size > 128 * 1024


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_large_floats_of_any_type_are_an_error_but_for_the_scales_of_blocks(kind: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[m] y) { y = Cast <to = 1> (w) }'
    )
    model.graph.initializer.append(
        onnx.TensorProto(name="w", dims=[32769, 1], data_type=onnx.TensorProto.DataType.Value(kind))
    )
    model.graph.node[0].name = "/a/weight_quant/Cast"
    export._check_floats(model, ())
    model.graph.node[0].name = "/a/Cast"
    export._check_floats(model, ("a",))
    with pytest.raises(ExportError, match=f"w, used by /a/Cast, is a {kind.lower()} tensor above 64 KiB"):
        export._check_floats(model, ())


def test_passes_can_be_chosen(tmp_path: Path) -> None:
    chosen = tuple(name for name in passes.QUANTIZED_PASSES if name != "first_token")
    model = quantized(classifier())
    export.export_quantized(model, tmp_path / "model.onnx", opset=17, graph_passes=chosen)
    names = [node.name for node in read(tmp_path / "model.onnx").graph.node]
    assert not [name for name in names if name.endswith("_first")]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x0anot a model")
    for path in (tmp_path / "model.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(ExportError, match=f"{path.name} cannot be read as an ONNX model"):
            read(path)
