"""The parity gate passes a sound export, and names the tensor in an unsound one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_onnx import classifier, feed, logits, quantized

from edgekd.errors import ExportError
from edgekd.onnxio import export, files
from edgekd.onnxio.parity import gate

FEEDS = [feed(1 + 2 * i, 3 + i, seed=i) for i in range(8)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: Any) -> tuple[Any, Path, np.ndarray]:
    model = quantized(classifier())
    path = tmp_path_factory.mktemp("parity") / "model.onnx"
    export.export_quantized(model, path, opset=17)
    answers = np.concatenate([logits(model, arrays) for arrays in FEEDS]).argmax(1)
    assert len(set(answers)) > 1  # else agreement would mean nothing
    return model, path, answers


def check(
    model: Any, path: Path, labels: np.ndarray, min_agreement: float = 0.995, max_score_gap: float = 0.003
) -> Any:
    return gate(model, path, FEEDS, labels, min_agreement=min_agreement, max_score_gap=max_score_gap)


def altered(path: Path, name: str, folder: Path, factor: float) -> Path:
    model = files.read(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array((array * factor).astype(array.dtype), name))
    files.write(model, folder / "altered.onnx")
    return folder / "altered.onnx"


def test_a_sound_export_passes(exported: Any) -> None:
    model, path, labels = exported
    report = check(model, path, labels)
    assert report["examples"] == len(labels) == 64
    assert report["score"] == {"torch": 1.0, "ort_plain": 1.0, "ort_optimized": 1.0}
    assert set(report["pairs"]) == {"torch/ort_plain", "torch/ort_optimized", "ort_plain/ort_optimized"}
    for row in report["pairs"].values():
        assert row["agreement"] == 1.0 and row["score_gap"] == 0.0 and 0 <= row["rms"] <= row["max_abs"] < 0.05
    assert report["module"]["error"] < 1e-3


@pytest.mark.parametrize(
    ("tensor", "factor", "module"),
    [
        ("bert.encoder.layer.1.intermediate.dense.weight_scale", 2.0, "bert.encoder.layer.1.intermediate.dense"),
        ("bert.encoder.layer.0.attention.self.query.input_scale", 0.5, "bert.encoder.layer.0.attention.self.query"),
        ("bert.embeddings.word_embeddings.weight_scale", 1.1, "bert.embeddings.word_embeddings"),
        ("bert.embeddings.LayerNorm.weight", 1.1, "bert.embeddings.LayerNorm"),
        ("bert.pooler.dense.bias_scale", 10.0, "bert.pooler.dense"),
    ],
)
def test_a_corrupted_scale_fails_and_the_tensor_is_named(
    exported: Any, tmp_path: Path, tensor: str, factor: float, module: str
) -> None:
    model, path, labels = exported
    with pytest.raises(ExportError, match=rf"first tensor that departs is \S+ \(the output of {module}\)"):
        check(model, altered(path, tensor, tmp_path, factor), labels)


@pytest.mark.parametrize(
    ("scheme", "module"),
    [
        ("u8s8_dynamic", "bert.encoder.layer.0.output.dense"),
        ("w4_block", "bert.encoder.layer.0.output.dense"),
        ("w4_block", "bert.embeddings.word_embeddings"),
    ],
)
def test_a_corrupted_scale_of_another_scheme_is_named_too(tmp_path: Path, scheme: str, module: str) -> None:
    model, path = quantized(classifier(), scheme), tmp_path / "model.onnx"
    export.export_quantized(model, path, opset=17)
    labels = np.concatenate([logits(model, arrays) for arrays in FEEDS]).argmax(1)
    check(model, path, labels)
    with pytest.raises(ExportError, match=rf"first tensor that departs is \S+ \(the output of {module}\)"):
        check(model, altered(path, f"{module}.weight_scale", tmp_path, 2.0), labels)


def test_a_corrupted_scale_is_found_even_where_the_answers_stay(exported: Any, tmp_path: Path) -> None:
    model, path, labels = exported
    bad = altered(path, "bert.encoder.layer.0.attention.self.value.weight_scale", tmp_path, 1.02)
    with pytest.raises(ExportError, match=r"different things.*attention\.self\.value"):
        check(model, bad, labels, min_agreement=0.0, max_score_gap=1.0)


def test_answers_that_are_not_finite_fail(exported: Any, tmp_path: Path) -> None:
    model, path, labels = exported
    with pytest.raises(ExportError, match=r"not finite.*output of classifier"):
        bad = altered(path, "classifier.weight_scale", tmp_path, np.inf)
        check(model, bad, labels)


def test_a_score_gap_fails_though_most_answers_agree(exported: Any, tmp_path: Path) -> None:
    model, path, labels = exported
    bad = altered(path, "classifier.weight_scale", tmp_path, -1.0)
    with pytest.raises(ExportError, match=r"scores 1\.0000 and 0\.\d+ .*logits \(the output of classifier\)"):
        check(model, bad, labels, min_agreement=0.0, max_score_gap=0.01)


def test_labels_must_be_as_many_as_rows(exported: Any) -> None:
    model, path, labels = exported
    with pytest.raises(ExportError, match="63 labels for 64 examples"):
        check(model, path, labels[:-1])


def test_the_gate_leaves_no_hooks_and_keeps_the_mode(exported: Any) -> None:
    model, path, labels = exported
    model.train()
    before = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    check(model, path, labels)
    assert model.training
    assert before == {name: len(module._forward_hooks) for name, module in model.named_modules()}
    model.eval()
