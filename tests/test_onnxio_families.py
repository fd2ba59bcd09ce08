"""Architectures besides BERT, tiny and random: as teachers in float, and as students in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_onnx import VOCABULARY, feed, logits, quantized

from edgekd.onnxio import branches, dynamic, export
from edgekd.onnxio.audit import audit, session
from edgekd.onnxio.files import read

USUAL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64
)
OWN: dict[str, dict[str, Any]] = {
    "Albert": USUAL | dict(embedding_size=16),
    "DebertaV2": USUAL | dict(relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
                              share_att_key=True, position_biased_input=False, type_vocab_size=0),
    "DistilBert": dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64),
    "Electra": USUAL | dict(embedding_size=16),
    "GPT2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "Llama": USUAL | dict(num_key_value_heads=2),
}  # fmt: skip


def family(name: str, **changes: Any) -> Any:
    """A classifier with weights large enough that its logits tell inputs apart."""
    torch.manual_seed(0)
    options: dict[str, Any] = dict(vocab_size=VOCABULARY, num_labels=4, pad_token_id=0, attn_implementation="eager")
    config = getattr(transformers, f"{name}Config")(**options, **OWN.get(name, USUAL) | changes)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def inputs(model: Any, batch: int, length: int, padding: int) -> dict[str, np.ndarray]:
    arrays = {key: array for key, array in feed(batch, length, 2, padding).items() if key in given(model)}
    arrays["input_ids"] = np.where(arrays["attention_mask"] == 1, np.maximum(arrays["input_ids"], 3), 0)
    return arrays


def given(model: Any) -> tuple[str, ...]:
    return export.accepted_inputs(model)


@pytest.mark.parametrize("name", ["Albert", "DebertaV2", "GPT2", "Llama", "MPNet"])
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
    assert given(family("GPT2")) == given(family("DebertaV2")) == ("input_ids", "attention_mask")
