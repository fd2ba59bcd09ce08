"""The fusion audit: which multiplications onnxruntime does in int8, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_onnx import classifier, quantized

from edgekd.errors import ExportError
from edgekd.globs import matches, named_in
from edgekd.onnxio import export, files
from edgekd.onnxio.audit import audit, session, signed
from edgekd.onnxio.names import marked, module_path

ATTENTION = ("*.attention.self.MatMul*",)
SCHEMES = ("u8s8_static", "u8s7_static", "s8s8_static")
OPERATORS = dict.fromkeys(SCHEMES, "Gemm") | {"u8s8_dynamic": "MatMulInteger", "w4_block": "MatMulNBits"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("audit")
    for scheme in OPERATORS:
        export.export_quantized(quantized(classifier(), scheme), folder / scheme, opset=17)
    export.export_float(classifier(), folder / "float", opset=17)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(("scheme", "operator"), OPERATORS.items())
def test_every_linear_layer_of_the_default_recipe_is_quantized(
    paths: dict[str, Path], scheme: str, operator: str
) -> None:
    result = audit(paths[scheme], ATTENTION)
    kind = "4-bit weights" if scheme == "w4_block" else "int8"
    integer = {row["node"] for row in result["multiplications"] if row["kind"] == kind}
    assert all(row["int8"] == (row["kind"] == "int8") for row in result["multiplications"])
    layers = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
              "intermediate.dense", "output.dense")  # fmt: skip
    expected = {f"bert.encoder.layer.{i}.{name}.{operator}" for i in (0, 1) for name in layers}
    assert integer == expected | {f"bert.pooler.dense.{operator}", f"classifier.{operator}"}
    assert result[kind] == 14 and result["float"] == 4
    assert sum(result["operators"].values()) == result["nodes"]


@pytest.mark.parametrize("scheme", ["u8s8_static", "w4_block"])
def test_the_share_of_int8_is_counted_by_hand(paths: dict[str, Path], scheme: str) -> None:
    result = audit(paths[scheme], ATTENTION)
    h, f, s, labels = 32, 48, 64, 4
    whole = s * (4 * h * h + 2 * h * f)  # the first layer, linear part
    last = s * 2 * h * h + 2 * h * h + 2 * h * f  # keys and values for every token, the rest for the first only
    attention = 2 * s * s * h + 2 * s * h
    integer = whole + last + h * h + h * labels
    assert sum(row["macs"] for row in result["multiplications"]) == integer + attention
    assert result["quantized_mac_share"] == pytest.approx(integer / (integer + attention))
    assert result["int8_mac_share"] == (0 if scheme == "w4_block" else result["quantized_mac_share"])


def test_onnxruntime_fuses_every_product_of_what_is_quantized_at_run_time(paths: dict[str, Path]) -> None:
    operators = audit(paths["u8s8_dynamic"], ATTENTION)["operators"]
    # query, key and value share what they multiply, and the last layer multiplies a slice of it
    assert operators["DynamicQuantizeMatMul"] + operators["MatMulIntegerToFloat"] == 14
    assert "MatMulInteger" not in operators and operators["DynamicQuantizeMatMul"] >= 5
    assert operators["DequantizeLinear"] == 3  # of the embeddings


def test_a_float_leftover_is_named(paths: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match=r"bert\.encoder\.layer\.0\.attention\.self\.MatMul \(FusedMatMul\)"):
        audit(paths["u8s8_static"], ("bert.encoder.layer.1.*",))


def test_a_planted_float_bias_is_flagged_by_name(paths: dict[str, Path], tmp_path: Path) -> None:
    model = files.read(paths["u8s8_static"])
    node = next(n for n in model.graph.node if n.name == "/bert/pooler/dense/Gemm")
    node.input[2] = "planted"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(32, np.float32), "planted"))
    files.write(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"runs in float though nothing keeps it there: bert\.pooler\.dense\.Gemm"):
        audit(tmp_path / "model.onnx", ATTENTION)


def test_a_glob_that_matches_nothing_is_an_error(paths: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match=r"keep_float 'bert\.poolr' matches no node or module"):
        audit(paths["u8s8_static"], (*ATTENTION, "bert.poolr"))


def test_a_float_graph_quantizes_nothing(paths: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match="recipe quantizes nothing"):
        audit(paths["float"], ("*",))


def test_a_module_kept_in_float_is_counted_as_float(tmp_path: Path) -> None:
    keep = (*ATTENTION, "classifier")
    model = quantized(classifier(), keep_float=keep)
    export.export_quantized(model, tmp_path / "model.onnx", opset=17, keep_float=keep)
    rows = {row["node"]: row for row in audit(tmp_path / "model.onnx", keep)["multiplications"]}
    assert not rows["classifier.Gemm"]["int8"] and rows["bert.pooler.dense.Gemm"]["int8"]


def test_signed_activations_are_told_from_unsigned(paths: dict[str, Path]) -> None:
    assert [signed(files.read(paths[name])) for name in ("s8s8_static", "u8s8_static", "float")] == [True, False, False]


def test_a_graph_that_onnxruntime_cannot_load_is_an_export_error() -> None:
    broken = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Nope(x) }'
    )
    with pytest.raises(ExportError, match="cannot load the graph"):
        session(broken)


def test_globs_match_nodes_and_the_modules_that_contain_them() -> None:
    path = module_path("/bert/encoder/layer.0/attention/self/MatMul_1")
    assert path == "bert.encoder.layer.0.attention.self.MatMul_1"
    for pattern in (path, "*.self.MatMul*", "bert.encoder.layer.0", "bert.encoder.layer.?.attention", "bert"):
        assert matches(path, pattern), pattern
    assert not named_in(path, ("bert.enc", "self", "bert.encoder.layer.1"))


def test_calls_of_one_module_are_told_apart_by_a_number_that_globs_do_not_see() -> None:
    modules = {"", "a", "a.0", "a.0.self", "a.0.self.query", "a.0.dense", "a.0.dense_1"}
    for exported, named in (
        ("/a/a.0/self/MatMul_1", "/a/a.0/self/MatMul_1"),
        ("/a/0_1/Add", "/a/0#2/Add"),
        ("/a/0/self/query_2/MatMul_1", "/a/0/self/query#3/MatMul_1"),
        ("/a/0/dense_1/MatMul", "/a/0/dense_1/MatMul"),  # a module of that name
        ("/a/0/other_1/MatMul", "/a/0/other_1/MatMul"),  # no module at all
        ("Identity_100", "Identity_100"),
    ):
        assert marked(exported, modules) == named
    assert module_path("/a/0/self/query#3/MatMul_1") == "a.0.self.query.MatMul_1"
