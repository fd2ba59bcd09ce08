"""The parity gate passes a sound export, and names the tensor in an unsound one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.stats import binomtest
from tiny_onnx import classifier, feed, logits, quantized

from edgekd.errors import ExportError
from edgekd.onnxio import agreement, export, files, scales
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


SCALES = {
    "u8s8_static": (
        ("bert.pooler.dense.input_scale", 1.5),
        ("bert.encoder.layer.0.attention.output.dense.input_scale", 1.5),
        ("bert.encoder.layer.0.attention.self.query.input_zero_point", 1.05),
        ("bert.encoder.layer.1.intermediate.dense.weight_scale", 2.0),
        ("bert.encoder.layer.0.attention.self.key.bias_scale", 1.5),
        ("bert.embeddings.word_embeddings.weight_scale", 1.00001),
        ("classifier.weight_scale", np.inf),
    ),
    "s8s8_static": (
        ("bert.pooler.dense.input_scale", 0.9),
        ("bert.encoder.layer.1.output.dense.bias_scale", 1.1),
    ),
    "u8s8_dynamic": (
        ("bert.encoder.layer.0.output.dense.weight_scale", 1.001),
        ("bert.embeddings.position_embeddings.weight_scale", 0.5),
    ),
    "w4_block": (
        ("bert.encoder.layer.0.output.dense.weight_scale", 1.01),
        ("bert.embeddings.word_embeddings.weight_scale", 2.0),
    ),
}
"""Tensors of a file, and by what each is multiplied; several change too little for any comparison of outputs."""


@pytest.mark.parametrize("scheme", SCALES)
def test_a_corrupted_scale_or_zero_point_fails_and_is_named(scheme: str, tmp_path: Path) -> None:
    model, path = quantized(classifier(), scheme), tmp_path / "model.onnx"
    export.export_quantized(model, path, opset=17)
    labels = np.concatenate([logits(model, arrays) for arrays in FEEDS]).argmax(1)
    check(model, path, labels)
    for tensor, factor in SCALES[scheme]:
        with pytest.raises(ExportError, match=rf"^{re.escape(tensor)} is \S+ in the file, .*export it again"):
            check(model, altered(path, tensor, tmp_path, factor), labels)


def test_every_scale_and_zero_point_of_a_file_is_compared(exported: Any) -> None:
    model, path, _ = exported
    graph, seen = files.read(path), set[str]()
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            seen |= set(node.input[1:])
    assert len(seen) > 50
    for tensor in graph.graph.initializer:
        if tensor.name in seen:
            kept = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(kept + kept.dtype.type(1)), tensor.name))
            with pytest.raises(ExportError, match=rf"^{re.escape(tensor.name)} is "):
                scales.check(model, graph)
            tensor.CopyFrom(onnx.numpy_helper.from_array(kept, tensor.name))
    scales.check(model, graph)


def test_a_node_that_belongs_to_no_quantizer_fails(exported: Any) -> None:
    model, path, _ = exported
    graph = files.read(path)
    node = next(node for node in graph.graph.node if node.op_type == "QuantizeLinear")
    node.name = "/bert/pooler/activation/input_quant/QuantizeLinear"
    with pytest.raises(ExportError, match=r"no quantizer bert\.pooler\.activation\.input_quant"):
        scales.check(model, graph)


@pytest.mark.parametrize(
    ("tensor", "factor", "module"),
    [
        ("bert.encoder.layer.1.intermediate.dense.weight", -1.0, "bert.encoder.layer.1.intermediate.dense"),
        ("bert.embeddings.word_embeddings.weight", 0.5, "bert.embeddings.word_embeddings"),
        ("bert.embeddings.LayerNorm.weight", 1.1, "bert.embeddings.LayerNorm"),
        ("bert.pooler.dense.bias_int32", 10.0, "bert.pooler.dense"),
    ],
)
def test_a_corrupted_weight_fails_and_the_tensor_is_named(
    exported: Any, tmp_path: Path, tensor: str, factor: float, module: str
) -> None:
    model, path, labels = exported
    with pytest.raises(ExportError, match=rf"first tensor that departs is \S+ \(the output of {module}\)"):
        check(model, altered(path, tensor, tmp_path, factor), labels)


def test_a_corrupted_weight_is_found_even_where_the_answers_stay(exported: Any, tmp_path: Path) -> None:
    model, path, labels = exported
    bad = altered(path, "bert.embeddings.LayerNorm.weight", tmp_path, 1.02)
    with pytest.raises(ExportError, match=r"different things.*embeddings\.LayerNorm"):
        check(model, bad, labels, min_agreement=0.0, max_score_gap=1.0)


def test_answers_that_are_not_finite_fail(tmp_path: Path) -> None:
    model, path = quantized(classifier(), keep_float=("classifier",)), tmp_path / "model.onnx"
    export.export_quantized(model, path, opset=17, keep_float=("classifier",))
    with pytest.raises(ExportError, match=r"not finite.*output of classifier"):
        check(model, altered(path, "classifier.weight", tmp_path, np.inf), np.zeros(64))


def test_a_score_gap_fails_though_most_answers_agree(exported: Any, tmp_path: Path) -> None:
    model, path, labels = exported
    bad = altered(path, "classifier.weight", tmp_path, -1.0)
    with pytest.raises(ExportError, match=r"scores 1\.0000 and 0\.\d+ .*logits \(the output of classifier\)"):
        check(model, bad, labels, min_agreement=0.0, max_score_gap=0.01)


def test_a_score_gap_that_chance_opens_is_none() -> None:
    labels, one = np.zeros(512, int), np.eye(3)[np.zeros(512, int)]
    for flips, apart in ((2, False), (6, True)):  # by McNemar's test 2 * 0.5 ** flips
        other = one.copy()
        other[:flips] = [0, 1, 0]
        row = agreement.compare(one, other, labels)
        assert row["score_p"] == pytest.approx(2 * 0.5**flips) and row["score_gap"] == flips / 512
        assert agreement.apart(row, 512, 0.98, 0.003) == apart
    assert agreement.apart(row, 512, 0.995, 1.0) and not agreement.apart(row, 512, 0.98, 0.02)


def test_disagreement_counts_only_where_more_examples_would_not_end_it() -> None:
    row = {"score_gap": 0.0, "score_p": 1.0}
    for examples, flips in ((512, 5), (512, 6), (64, 2), (64, 3), (20_000, 119), (20_000, 120)):
        at_best = binomtest(examples - flips, examples).proportion_ci(method="wilson").high
        found = agreement.apart({**row, "agreement": 1 - flips / examples}, examples, 0.995, 1.0)
        assert found == (at_best < 0.995)
    assert agreement.apart({**row, "agreement": 511 / 512}, 512, 1.0, 1.0)  # who asks for all gets all
    assert not agreement.apart({**row, "agreement": 1.0}, 512, 1.0, 1.0)


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
