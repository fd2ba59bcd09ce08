"""Sizes, dynamic quantization, and the folders that optimum loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny import fast, wordpiece
from tiny_onnx import classifier, feed, logits, quantized, tensors

from edgekd.bundle import MODEL
from edgekd.errors import ExportError
from edgekd.onnxio import dynamic, export, files, layout, sizes
from edgekd.onnxio.audit import audit, session

NAMES = ("energy", "finance", "food", "other")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """float.onnx, int8.onnx and ``source``, a Hugging Face folder."""
    path = tmp_path_factory.mktemp("folder")
    model = classifier()
    model.save_pretrained(path / "source")
    fast(wordpiece()).save_pretrained(path / "source")
    export.export_float(model, path / "float.onnx", opset=17)
    export.export_quantized(quantized(model), path / "int8.onnx", opset=17)
    return path


@pytest.mark.parametrize("name", ["float.onnx", "int8.onnx"])
def test_the_rows_of_the_size_table_add_up_to_the_file(folder: Path, name: str) -> None:
    rows = sizes.table(folder / name)
    assert sum(row["bytes"] for row in rows) == (folder / name).stat().st_size
    assert rows[-1]["kind"] == "graph" and rows[-1]["bytes"] > 0
    tensors_ = {t.name: onnx.numpy_helper.to_array(t) for t in files.read(folder / name).graph.initializer}
    assert {row["tensor"]: row["bytes"] for row in rows[:-1]} == {n: a.nbytes for n, a in tensors_.items()}
    assert {row["tensor"]: row["shape"] for row in rows[:-1]} == {n: list(a.shape) for n, a in tensors_.items()}


@pytest.mark.parametrize(("name", "width", "dtype"), [("float.onnx", 4, "float"), ("int8.onnx", 1, "int8")])
def test_kinds_follow_the_module_that_uses_a_tensor(folder: Path, name: str, width: int, dtype: str) -> None:
    rows = sizes.table(folder / name)
    by_name = {row["tensor"]: row for row in rows}
    assert by_name["bert.embeddings.word_embeddings.weight"] | {"tensor": ""} == {
        "tensor": "", "dtype": dtype, "shape": [99, 32], "bytes": 99 * 32 * width, "kind": "embedding", "users": 1,
    }  # fmt: skip
    weights = [row for row in rows if len(row["shape"]) == 2 and row["kind"] == "linear"]
    assert len(weights) == 14 and sum(row["bytes"] for row in weights) == width * (
        2 * (4 * 32 * 32 + 2 * 32 * 48) + 32 * 36
    )
    assert by_name["bert.encoder.layer.0.output.LayerNorm.bias"]["kind"] == "norm"
    assert all(
        row["kind"] == "linear" for row in rows if row["tensor"].startswith("bert.encoder.layer.0.output.dense.")
    )


def test_a_shared_tensor_is_counted_once(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "g (float[n,4] x) => (float[n,4] y) { t = MatMul(x, w) y = MatMul(t, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    for node, name in zip(model.graph.node, ("/a/MatMul", "/b/MatMul"), strict=True):
        node.name = name
    files.write(model, tmp_path / "model.onnx")
    rows = sizes.table(tmp_path / "model.onnx")
    assert [(row["tensor"], row["bytes"], row["kind"], row["users"]) for row in rows[:-1]] == [("w", 64, "linear", 2)]


@pytest.mark.parametrize(("scheme", "size"), [("u8s8_static", 1), ("w4_block", 1 / 2)])
def test_tied_weights_are_stored_once_and_their_users_counted(tmp_path: Path, scheme: str, size: float) -> None:
    model = classifier(num_hidden_layers=1, type_vocab_size=64)  # as many as positions
    tables, attention = model.bert.embeddings, model.bert.encoder.layer[0].attention
    tables.token_type_embeddings.weight = tables.position_embeddings.weight
    model.bert.pooler.dense.weight = attention.output.dense.weight
    keep = ("*.attention.self.MatMul*",)
    export.export_quantized(quantized(model, scheme), tmp_path / "model.onnx", opset=17, keep_float=keep)
    rows = sizes.table(tmp_path / "model.onnx")
    users = {
        (kind, count): sorted(r["users"] for r in rows if (r["kind"], r["bytes"]) == (kind, count * 32 * size))
        for kind, count in (("embedding", 64), ("linear", 32))
    }
    assert users == {("embedding", 64): [2], ("linear", 32): [1, 1, 1, 2]}  # query, key, value; output and pooler


def test_dynamic_quantization_is_repeatable_smaller_and_close(folder: Path, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        dynamic.quantize_dynamic(folder / "float.onnx", tmp_path / name)
    one = tmp_path / "one.onnx"
    assert one.read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert one.stat().st_size < (folder / "float.onnx").stat().st_size
    arrays = feed(3, 20, padding=4)
    found, expected = session(files.read(one)).run(None, arrays)[0], logits(classifier(), arrays)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_dynamic_quantization_reaches_every_linear_layer(folder: Path, tmp_path: Path) -> None:
    dynamic.quantize_dynamic(folder / "float.onnx", tmp_path / "model.onnx")
    result = audit(tmp_path / "model.onnx", ("*.attention.self.MatMul*",))
    assert result["int8"] == 14 and result["float"] == 4


def test_dynamic_quantization_of_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no")
    with pytest.raises(ExportError, match=r"text\.onnx cannot be read"):
        dynamic.quantize_dynamic(tmp_path / "text.onnx", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("place", "arguments"),
    [("model.onnx", {}), (MODEL, {"file_name": "model_quantized.onnx"})],
    ids=["artifact folder", "bundle"],
)
def test_optimum_loads_the_folder(folder: Path, tmp_path: Path, place: str, arguments: dict[str, str]) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    layout.write(tmp_path, folder / "source", NAMES)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "int8.onnx", tmp_path / place)
    model = ORTModelForSequenceClassification.from_pretrained(tmp_path, **arguments)
    assert model.config.id2label == dict(enumerate(NAMES))
    arrays = feed(2, 11, padding=3)
    expected = session(files.read(folder / "int8.onnx")).run(None, arrays)[0]
    np.testing.assert_array_equal(model(**tensors(arrays)).logits.numpy(), expected)
    text = "oil price per barrel"
    assert AutoTokenizer.from_pretrained(tmp_path)(text) == AutoTokenizer.from_pretrained(folder / "source")(text)


def test_the_configuration_tells_nothing_of_the_machine(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "source/config.json").read_text()) | {"_name_or_path": "/home/someone/teacher"}
    shutil.copytree(folder / "source", tmp_path / "source")
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    layout.write(tmp_path / "out", tmp_path / "source", NAMES)
    written = (tmp_path / "out/config.json").read_text()
    assert "someone" not in written
    assert json.loads(written)["label2id"] == {name: i for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_source_without_configuration_or_tokenizer_is_refused(folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(folder / "source", tmp_path / "source")
    (tmp_path / "source" / missing).unlink()
    with pytest.raises(ExportError, match=missing.replace(".", r"\.")):
        layout.write(tmp_path / "out", tmp_path / "source", NAMES)
