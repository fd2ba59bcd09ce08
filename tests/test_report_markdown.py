from __future__ import annotations

import re

import pytest
import report_fixture as made
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from edgekd.report import figures, limits, markdown

REPORT = made.report()
HTML = MarkdownIt("commonmark", {"html": True}).enable("table")


def as_text(source: str) -> str:
    return HTML.render(source)


def test_the_first_line_of_the_headline_comes_right_below_the_title() -> None:
    lines = markdown.render(REPORT).splitlines()
    assert lines[0] == "# reuters_x86"
    assert lines[2] == f"- **{REPORT['headline'][0]}**"


def test_every_row_and_budget_line_is_in_a_table() -> None:
    text = markdown.render(REPORT)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    for name in figures.ARTIFACTS.values():
        assert (
            sum(line.startswith(f"| {name} |") for line in tables) == len(made.CELLS) + 1
        )  # and once by kind of tensor
    assert text.count("| met |") == 7


def test_all_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    width = None
    for line in markdown.render(REPORT).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert width is None or cells is None or cells == width, line
        width = cells


def test_the_largest_tensors_of_the_shipped_file_are_listed_with_type_and_sharing() -> None:
    lines = markdown.render(REPORT).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| Tensor of the shipped file |"))
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines[start + 2 : start + 5]]
    assert [(name, kind, dtype, users) for name, kind, dtype, _, _, users in cells] == [
        ("`embedding.weight`", "embedding", "int8", "1"),
        ("`linear.weight`", "linear", "int8", "2"),
        ("`norm.weight`", "norm", "int8", "1"),
    ]
    older = {name: [dict(row) for row in rows] for name, rows in REPORT["sizes"].items()}
    for row in older["student_qad"]:
        row.pop("users", None)
    assert "| Tensor of the shipped file |" in markdown.render(REPORT | {"sizes": older})


def test_what_a_file_answers_is_told_once_at_real_lengths() -> None:
    assert {row["score"] is None for row in REPORT["rows"]} == {False}
    parts = [part.partition("\n## ")[0] for part in markdown.render(REPORT).split("\n### ")[1:]]
    told = {part.splitlines()[0]: {name in part for name in ("Score", "Agreement", "KL")} for part in parts}
    assert told == {where: {"real lengths" in where} for where in told}
    assert len(told) == len({cell[1:] for cell in made.CELLS})


def test_all_runtimes_are_in_one_table_and_those_without_figures_have_one_row_with_the_reason_below() -> None:
    text = markdown.render(made.report(made.everywhere(), made.CONVERSIONS))
    table = text.partition("### 1 thread, real lengths")[2].partition("###")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    runtimes = [line.split(" | ")[1] for line in lines]
    assert list(dict.fromkeys(runtimes)) == [
        *("onnxruntime", "OpenVINO", "onnxruntime mobile (.ort)", "LiteRT", "tinyweb", "absent", "brittle"),
        "LiteRT on Pixel 8",
    ]
    assert [runtimes.count(name) for name in ("LiteRT", "absent", "brittle", "LiteRT on Pixel 8")] == [5, 1, 1, 3]
    assert "- skipped: `pip install 'edgekd[absent]'` (absent, 1 thread, real lengths)" in text
    assert "- failed: crashed with SIGSEGV (brittle, 1 thread, real lengths)" in text


def test_what_to_ship_where_is_a_table_with_what_runs_in_int8_and_what_in_float() -> None:
    text = markdown.render(made.report(made.everywhere(), made.CONVERSIONS))
    rows = text.partition("## What to ship where")[2].partition("\n## ")[0].splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in rows if "| " in line}
    assert cells["LiteRT"][:2] == ["2.3.0", "**student, shipped int8**"]
    assert cells["LiteRT"][3:] == ["26 in int8; 1 in float", "`classifier.weight`"]
    assert cells["absent"][1:3] == ["nothing", "skipped: pip install 'edgekd\\[absent\\]'"]
    assert cells["onnxruntime"][3] == "not told"  # the fixture's audit names no multiplication


def test_what_was_verified_on_other_instruction_sets_is_a_table_and_other_answers_a_limit() -> None:
    text = markdown.render(REPORT | {"isa": [made.ISA, made.OTHER]})
    assert "| arm64 | cortex-a76, emulated by qemu-aarch64 7.2.17 | 256 of 256 | 97.26 % |" in text
    assert text.count("| same |") == 1 and text.count("| **OTHER ANSWERS** |") == 1
    assert "other instruction sets" not in markdown.render(REPORT | {"isa": []})
    lines = limits.limits(REPORT | {"isa": [made.ISA, made.OTHER]})
    assert [line for line in lines if "avx2 (Haswell): 201 of 256 labels" in line]
    assert not [line for line in lines if "arm64" in line]


def test_an_invalid_row_shows_its_reason() -> None:
    table = made.rows()
    made.spoil(table[4], "unstable: the rounds lie 23% apart")
    text = markdown.render(made.report(table))
    assert "**INVALID**" in text
    assert (
        "- INVALID: unstable: the rounds lie 23% apart (student, shipped int8, onnxruntime, 1 thread, real lengths)"
        in text
    )


def test_a_crashed_row_has_dashes_for_figures() -> None:
    table = made.rows()
    made.spoil(table[4], "crashed with SIGSEGV", figures=False)
    line = next(x for x in markdown.render(made.report(table)).splitlines() if x.startswith("| student, shipped int8"))
    assert line.count("–") >= 8


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1))
def test_escaped_text_reads_as_it_was_written(text: str) -> None:
    source = as_text(f"- {markdown.escape(text)}").strip()
    inside = re.fullmatch(r"<ul>\n<li>(.*)</li>\n</ul>", source, re.DOTALL)
    assert inside, source
    shown = inside[1]
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    assert shown == text


@pytest.mark.parametrize(
    "text", ["a|b", "`x`", "<script>alert(1)</script>", "[a](http://x)", "*b*", "- c", "# d", "1. e"]
)
def test_markup_in_a_name_stays_text_in_a_table(text: str) -> None:
    shown = as_text(markdown.table(["a", "b"], [[markdown.escape(text), "x"]]))
    assert shown.count("<td") == 2
    assert not re.search(r"<(script|a|em|code|ul|ol|h1)\b", shown)


@pytest.mark.parametrize("text", ["a|b", "a`b", "<b>"])
def test_a_code_span_stays_one_cell(text: str) -> None:
    shown = as_text(markdown.table(["a", "b"], [[markdown.code(text), "x"]]))
    assert shown.count("<td") == 2
    assert "<b>" not in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[
            (None, "–"),
            (0, "0"),
            (0.01234, "0.0123"),
            (0.0000321, "0.0000321"),
            (0.5, "0.500"),
            (0.99951, "1.00"),
            (9.999, "10.0"),
        ],
        *[(99.96, "100"), (1234.5, "1,234"), (-0.25, "-0.250")],
    ],
)
def test_a_number_has_three_digits_and_no_power_of_ten(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.0005, "+0.05"), (-0.012, "−1.20"), (0.0, "0.00"), (-0.00001, "0.00")])
def test_a_difference_in_points_has_its_sign_unless_it_is_nothing(share: float, text: str) -> None:
    assert figures.points(share) == text
