"""One scheme for some layers, another for others: chosen by globs, in one graph that answers as it was trained to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny_onnx import classifier, feed, logits, quantized

from edgekd import shape, spec, store
from edgekd.errors import TargetError
from edgekd.onnxio import export, files, parity, sizes
from edgekd.onnxio.audit import audit
from edgekd.quant import replace

ATTENTION = "*.attention.self.MatMul*"
TABLES = {"bert.embeddings": "w4_block"}
EXAMPLE = {"input_ids": torch.tensor([[2, 40, 50, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
TARGET = spec.Target(
    name="base",
    task=spec.TextClassification(train="a.csv", test="b.csv"),
    teacher=spec.Teacher(source="dir:teacher"),
    student=spec.Student(layers=2),
    quant=spec.Quant(calibration="base"),
)


def exported(path: Path, scheme: str = "u8s8_static", mixed: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A tiny classifier, quantized so and written; the module."""
    quant = spec.Quant(calibration="x", scheme=scheme, keep_float=(ATTENTION,), mixed=mixed or {})  # type: ignore[arg-type]
    model = quantized(classifier(**changes), scheme, quant.keep_float, mixed=quant.mixed)
    export.export_quantized(model, path, opset=17, keep_float=quant.floats)
    return model


def kinds(path: Path, keep_float: tuple[str, ...] = (ATTENTION,)) -> dict[str, str]:
    """Module -> what its multiplication is counted as."""
    return {row["node"].rpartition(".")[0]: row["kind"] for row in audit(path, keep_float)["multiplications"]}


def test_four_bit_tables_and_eight_bit_layers_are_one_sound_file_smaller_by_what_the_rows_save(tmp_path: Path) -> None:
    changes = dict(vocab_size=2000, hidden_size=64)
    model = exported(tmp_path / "mixed", mixed=TABLES, **changes)
    exported(tmp_path / "int8", **changes)
    found = kinds(tmp_path / "mixed")
    assert (
        found.pop("bert.encoder.layer.0.attention.self") == found.pop("bert.encoder.layer.1.attention.self") == "float"
    )
    assert set(found.values()) == {"int8"}
    feeds = [feed(4, 12, seed, padding=3) for seed in range(8)]
    labels = np.concatenate([logits(model, arrays) for arrays in feeds]).argmax(1)
    parity.gate(model, tmp_path / "mixed", feeds, labels, min_agreement=0.9, max_score_gap=0.1)
    rows = {name: [r for r in sizes.table(tmp_path / name) if r["kind"] == "embedding"] for name in ("mixed", "int8")}
    numbers = (2000 + 64 + 2) * 64
    whole = {name: sum(row["bytes"] for row in part) for name, part in rows.items()}
    assert whole["mixed"] == numbers // 2 + 2 * (2000 + 64 + 2)  # half a byte, and a scale for each row of 64
    assert whole["int8"] == pytest.approx(numbers, abs=64)  # three scales, and what indices take
    size = {name: (tmp_path / name).stat().st_size for name in rows}
    assert size["int8"] - size["mixed"] == pytest.approx(whole["int8"] - whole["mixed"], abs=2000)  # nodes and names
    parts = shape.tensors(model.config.to_dict(), model.config.num_labels)
    assert parts is not None
    least, expected = shape.file_bytes(parts, spec.Quant(calibration="x", mixed={**TABLES}))
    assert least < size["mixed"] and abs(size["mixed"] - expected) < 0.1 * expected


@pytest.mark.parametrize(
    ("scheme", "other", "kind"),
    [
        ("w4_block", "u8s8_static", "int8"),
        ("u8s8_static", "w4_block", "4-bit weights"),
        ("u8s8_static", "u8s8_dynamic", "int8"),
        ("s8s8_static", "float", "float"),
    ],
)
def test_single_layers_may_have_another_scheme_or_none(tmp_path: Path, scheme: str, other: str, kind: str) -> None:
    layers = ("bert.encoder.layer.0.attention.self.key", "bert.encoder.layer.1.intermediate.dense")
    model = exported(tmp_path / "model", scheme, dict.fromkeys(layers, other))
    found = kinds(tmp_path / "model", (ATTENTION, *(layers if other == "float" else ())))
    assert {found[name] for name in layers} == {kind}
    usual = "4-bit weights" if scheme == "w4_block" else "int8"
    assert {k for name, k in found.items() if name not in layers and "self" not in name.split(".")[-1]} == {usual}
    feeds = [feed(4, 12, seed, padding=3) for seed in range(4)]
    labels = np.concatenate([logits(model, arrays) for arrays in feeds]).argmax(1)
    parity.gate(model, tmp_path / "model", feeds, labels, min_agreement=0.9, max_score_gap=0.1)
    dynamic = {node.op_type for node in files.read(tmp_path / "model").graph.node} & {"DynamicQuantizeLinear"}
    assert bool(dynamic) == ("u8s8_dynamic" in (scheme, other))


def test_the_first_glob_that_matches_decides_and_keep_float_comes_before_them_all() -> None:
    quant = spec.Quant(
        calibration="x",
        keep_float=("classifier",),
        mixed={"*.position_embeddings": "float", "bert.embeddings.*": "w4_block", "*": "u8s8_static"},
    )
    tables = "bert.embeddings."
    names = ("classifier", f"{tables}position_embeddings", f"{tables}word_embeddings", "bert.pooler.dense")
    assert [quant.scheme_of(name) for name in names] == ["float", "float", "w4_block", "u8s8_static"]
    model = replace.quantize(tiny.bert(), quant.scheme, quant.keep_float, EXAMPLE, quant.block, quant.mixed)
    groupwise = {n: m.weight_quant.is_groupwise for n, m in model.named_modules() if hasattr(m, "weight_quant")}
    assert [groupwise.get(name) for name in names] == [None, None, True, False]


@pytest.mark.parametrize("mixed", [{"bert.embedings": "float"}, {"bert": "w4_block", "bert.pooler": "float"}])
def test_a_glob_that_decides_nothing_is_an_error(mixed: dict[str, str]) -> None:
    with pytest.raises(TargetError, match=f"quant.mixed: '{[*mixed][-1]}' matches no layer"):
        replace.quantize(tiny.bert(), "u8s8_static", (), EXAMPLE, 128, mixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed": {"a": "s8s8_static"}}, "scheme s8s8_static does not suit x86 with VNNI"),
        ({"mixed": {"a": "w5_block"}}, r"quant\.mixed\['a'\] must be one of .* not 'w5_block'"),
        ({"scheme": "w4_block", "mixed": {"a": "u8s8_static"}, "calibration": ""}, "calibration must name a list"),
        ({"mixed": {"a": "w4_block"}, "per_channel": False}, "a scale for every block"),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_anything_is_trained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        dataclasses.replace(TARGET, quant=dataclasses.replace(TARGET.quant, **changes))


def test_signed_and_unsigned_activations_are_not_mixed_nor_four_bits_given_to_openvino() -> None:
    quant = spec.Quant(calibration="x", scheme="s8s8_static", mixed={"a": "u8s8_dynamic"})
    with pytest.raises(TargetError, match="signed and unsigned activations at once"):
        dataclasses.replace(TARGET, device=spec.ARM64_DOTPROD, quant=quant)
    both = spec.Bench(runtimes=("ort_cpu", "openvino"))
    with pytest.raises(TargetError, match="w4_block runs in ort_cpu alone"):
        dataclasses.replace(TARGET, bench=both, quant=spec.Quant(calibration="x", mixed={"a": "w4_block"}))


def test_the_order_of_the_globs_is_part_of_a_stages_key() -> None:
    one = spec.Quant(mixed={"a": "float", "b": "w4_block"})
    other = spec.Quant(mixed={"b": "w4_block", "a": "float"})
    assert store.key("quantize", 1, {"quant": one}) != store.key("quantize", 1, {"quant": other})
    assert store.key("quantize", 1, {"quant": one}) == store.key("quantize", 1, {"quant": dataclasses.replace(one)})
