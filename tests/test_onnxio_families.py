"""Architectures besides BERT, tiny and random: as teachers in float, and as students in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from tiny_onnx import VOCABULARY, feed, logits, quantized

from edgekd.errors import ExportError
from edgekd.onnxio import branches, dynamic, export, parity
from edgekd.onnxio.audit import audit, session
from edgekd.onnxio.files import read, write

USUAL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=160
)
DEBERTA = USUAL | dict(
    relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True,
    norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
)  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "Albert": USUAL | dict(embedding_size=16),
    "DebertaV2": DEBERTA | dict(conv_kernel_size=3, conv_act="gelu"),
    "DebertaV2 v3": DEBERTA,
    "DistilBert": dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=160),
    "Electra": USUAL | dict(embedding_size=16),
    "GPT2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "Llama": USUAL | dict(num_key_value_heads=2),
    "Mistral": USUAL | dict(num_key_value_heads=2, sliding_window=5),
    "MobileBert": USUAL | dict(embedding_size=16, intra_bottleneck_size=16, num_feedforward_networks=2),
    "ModernBert": USUAL | dict(local_attention=16, cls_token_id=2, sep_token_id=3),
    "MPNet": USUAL | dict(pad_token_id=1),
    "XLMRoberta": USUAL | dict(pad_token_id=1),
}
BERTS = ("*.attention.self.MatMul*", "classifier")
STUDENTS: dict[str, tuple[str, ...]] = {
    "Albert": ("*.attention.MatMul*", "classifier"),
    "Bert": BERTS,
    "DebertaV2": (*BERTS, "deberta.encoder.conv"),
    "DebertaV2 v3": BERTS,
    "DistilBert": ("*.attention.MatMul*", "classifier"),
    "Electra": BERTS,
    "MobileBert": BERTS,
    "ModernBert": ("*.attn.MatMul*", "classifier"),
    "MPNet": ("*.attn.MatMul*", "classifier"),
    "Roberta": BERTS,
    "XLMRoberta": BERTS,
}
"""Each family with what a target would keep in float: attention's own products and the classifier."""
SHAPES = ((1, 1, 0), (3, 1, 0), (1, 128, 0), (3, 128, 40))
"""(batch, length, padded tokens of the last row)."""


def family(name: str, **changes: Any) -> Any:
    """A classifier with weights large enough that its logits tell inputs apart."""
    torch.manual_seed(0)
    options: dict[str, Any] = dict(vocab_size=VOCABULARY, num_labels=4, pad_token_id=0, attn_implementation="eager")
    family = name.partition(" ")[0]
    config = getattr(transformers, f"{family}Config")(**options | OWN.get(name, USUAL) | changes)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def inputs(model: Any, batch: int, length: int, padding: int) -> dict[str, np.ndarray]:
    arrays = {key: array for key, array in feed(batch, length, 2, padding).items() if key in given(model)}
    padded = model.config.pad_token_id
    arrays["input_ids"] = np.where(arrays["attention_mask"] == 1, np.maximum(arrays["input_ids"], 3), padded)
    return arrays


def given(model: Any) -> tuple[str, ...]:
    return export.accepted_inputs(model)


def linear_calls(model: Any, arrays: dict[str, np.ndarray]) -> int:
    """How often one forward runs a quantized linear layer: those that layers share count each time."""
    calls: list[str] = []
    quantized_ones = [module for module in model.modules() if type(module).__name__ == "QuantLinear"]
    handles = [module.register_forward_hook(lambda *_: calls.append("")) for module in quantized_ones]
    logits(model, arrays)
    for handle in handles:
        handle.remove()
    return len(calls)


@pytest.mark.parametrize("name", ["Albert", "DebertaV2 v3", "GPT2", "Llama", "Mistral", "MPNet"])
def test_a_teacher_of_another_family_answers_as_torch_does_and_is_quantized_dynamically(
    name: str, tmp_path: Path
) -> None:
    model = family(name)
    written = export.export_float(model, tmp_path / "model.onnx", opset=17)
    dynamic.quantize_dynamic(tmp_path / "model.onnx", tmp_path / "dynamic.onnx")
    assert branches.left(written) is None
    exact, rough = (session(read(tmp_path / name)) for name in ("model.onnx", "dynamic.onnx"))
    for batch, length, padding in ((1, 1, 0), (3, 17, 6), (2, 40, 0)):
        arrays = inputs(model, batch, length, padding)
        expected = logits(model, {k: v for k, v in arrays.items() if k != "token_type_ids"})  # as in training
        np.testing.assert_allclose(exact.run(None, arrays)[0], expected, atol=1e-4)
        assert np.abs(rough.run(None, arrays)[0] - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_any_family_is_int8_but_for_what_it_keeps_and_answers_as_it_was_trained_to(
    name: str, tmp_path: Path
) -> None:
    keep, path = STUDENTS[name], tmp_path / "model.onnx"
    model = quantized(family(name), keep_float=keep)
    export.export_quantized(model, path, opset=17, keep_float=keep)
    feeds = [inputs(model, batch, length, padding) for batch, length, padding in SHAPES]
    audited = audit(path, keep)  # a float product that no glob names is an error
    assert audited["int8"] == linear_calls(model, feeds[0])
    share = audited["int8_mac_share"]
    assert share is None or (0 < share < 1 and all(row["macs"] for row in audited["multiplications"]))
    expected = [logits(model, arrays) for arrays in feeds]
    labels = np.concatenate(expected).argmax(1)
    parity.gate(model, path, feeds, labels, min_agreement=1.0, max_score_gap=0.0)
    for optimize in (False, True):
        runner = session(read(path), optimize=optimize)
        for arrays, answer in zip(feeds, expected, strict=True):
            found = runner.run(None, arrays)[0]
            assert np.isfinite(found).all()
            np.testing.assert_allclose(found, answer, atol=0.02 * np.abs(answer).max())


def test_relative_positions_that_a_model_reads_past_their_embedding_are_stored_in_int8(tmp_path: Path) -> None:
    model = quantized(family("DebertaV2 v3", position_buckets=300))  # 75 KiB in float: more than may be left over
    written = export.export_quantized(model, tmp_path / "model.onnx", opset=17)
    tables = [t for t in written.graph.initializer if t.dims == [600, 32]]
    assert [t.data_type for t in tables] == [onnx.TensorProto.INT8]


@pytest.mark.parametrize("call", ["ffn", "ffn#2"])
def test_a_layer_that_runs_twice_is_compared_at_each_call(call: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", quantized(family("Albert"))
    graph = export.export_quantized(model, path, opset=17)
    node = next(node for node in graph.graph.node if node.name.endswith(f"/{call}/Gemm"))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.full(48, 0.1, np.float32), "other"))
    node.input[2] = "other"  # in place of the bias, at this call alone
    write(graph, path)
    feeds = [inputs(model, *shape) for shape in SHAPES]
    labels = np.concatenate([logits(model, arrays) for arrays in feeds]).argmax(1)
    with pytest.raises(ExportError, match=rf"different things.*\(the output of \S+albert_layers\.0\.{call}\)"):
        parity.gate(model, path, feeds, labels, min_agreement=0.0, max_score_gap=1.0)


@pytest.mark.parametrize("scheme", ["u8s8_static", "u8s8_dynamic", "w4_block"])
@pytest.mark.parametrize("name", ["DistilBert", "Roberta", "Electra"])
def test_a_student_of_another_family_is_exported_whole_too(name: str, scheme: str, tmp_path: Path) -> None:
    model = quantized(family(name), scheme)
    assert ("token_type_ids" in given(model)) == (name != "DistilBert")
    path = tmp_path / "model.onnx"
    export.export_quantized(model, path, opset=17)
    attention = "*.attention.MatMul*" if name == "DistilBert" else "*.self.MatMul*"
    assert audit(path, (attention,))["float"] == 4
    arrays, expected = inputs(model, 3, 17, 5), logits(model, inputs(model, 3, 17, 5))
    np.testing.assert_allclose(session(read(path)).run(None, arrays)[0], expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("scheme", ["u8s8_static", "u8s7_static", "s8s8_static"])
@pytest.mark.parametrize("keep", [(), ("classifier",)], ids=["whole", "float classifier"])
def test_a_layer_before_a_relu_runs_in_int8(scheme: str, keep: tuple[str, ...], tmp_path: Path) -> None:
    model = quantized(family("DistilBert", activation="relu"), scheme, keep)
    path = tmp_path / "model.onnx"
    export.export_quantized(model, path, opset=17, keep_float=keep)
    rows = {row["node"]: row for row in audit(path, ("*.attention.MatMul*", *keep))["multiplications"]}
    before_relu = ["pre_classifier.Gemm", *(f"distilbert.transformer.layer.{i}.ffn.lin1.Gemm" for i in (0, 1))]
    assert all(rows[name]["int8"] for name in before_relu)
    arrays, expected = inputs(model, 3, 17, 5), logits(model, inputs(model, 3, 17, 5))
    np.testing.assert_allclose(session(read(path)).run(None, arrays)[0], expected, atol=0.02 * np.abs(expected).max())


def test_token_types_are_an_input_only_where_the_model_has_a_table_for_them() -> None:
    assert "token_type_ids" in given(family("Albert"))
    assert given(family("GPT2")) == given(family("DebertaV2 v3")) == ("input_ids", "attention_mask")
