"""What a person reads of a run with 4-bit weights calls them so, everywhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
import report_fixture as made

from edgekd import spec
from edgekd.report import card, compare, html, markdown

TEACHER = "teacher, ORT dynamic int8"
"""It is int8 whatever the student is."""


def without_types(text: str) -> str:
    """``text`` without what is int8 in any run: the teacher's dynamic quantization, and the types of tensors."""
    return re.sub(rf"{TEACHER}|\| int8 \||>int8</td>", "", text)


def table(**speed: float) -> list[dict[str, Any]]:
    return [row for row in made.rows(speed=speed) if row["runtime"] == "ort_cpu"]


def four_bit(rows: list[dict[str, Any]]) -> dict[str, Any]:
    quant = spec.Quant(scheme="w4_block", keep_float=("classifier",))
    return made.report(rows, quant=quant, bench=spec.Bench())


MANIFEST = dict(
    labels=made.LABELS, scheme="w4_block", max_length=64, inputs=[], model="onnx/model_quantized.onnx", opset=17,
    minimum_onnxruntime="1.22",
)  # fmt: skip


def test_a_report_and_its_card_say_int8_of_the_teacher_alone() -> None:
    report = four_bit(table())
    for text in (markdown.render(report), card.render(report, MANIFEST)):
        assert "student, shipped 4-bit" in text and "4-bit is 1.8" in text and "The 4-bit student keeps" in text
        assert TEACHER in text and "int8" not in without_types(text)


def test_the_page_and_its_charts_do_too() -> None:
    page = re.sub(r"(?s)<pre.*?</pre>", "", html.render(four_bit(table())))  # what stages found, as JSON
    assert "The shipped 4-bit student against" in page and "int8" not in without_types(page)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert {"student, best PTQ 4-bit", "student, shipped 4-bit", TEACHER} <= set(labels)


def test_failures_and_invalid_rows_do_too() -> None:
    rows = table(student_qad=3.0)
    for row in rows:
        if row["workload"] == "fixed16" and row["artifact"].startswith("student"):
            made.spoil(row, "unstable: 23% apart")
    text = markdown.render(four_bit(rows))
    assert "4-bit is SLOWER than" in text and "; student, best PTQ 4-bit, onnxruntime, 1 thread, 16 tokens" in text
    assert "int8" not in without_types(text)


def test_a_comparison_across_precisions_names_both() -> None:
    text = compare.render(compare.compare([made.report(table(), bench=spec.Bench()), four_bit(table(student_qad=1.5))]))
    assert "student, shipped int8 → 4-bit" in text and "int8 → 4-bit vs fp32" in text


@pytest.mark.parametrize("scheme", ["u8s8_static", "u8s7_static", "s8s8_static", "u8s8_dynamic"])
def test_every_other_scheme_is_int8(scheme: str) -> None:
    assert spec.precision(scheme) == "int8"
