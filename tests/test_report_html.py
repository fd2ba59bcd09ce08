from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
import report_fixture as made

from edgekd import spec
from edgekd.report import figures, html, plots

REPORT = made.report()
PAGE = html.render(REPORT)
EVIL = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
CHARTS = (plots.accuracy_against_size, plots.accuracy_against_latency, plots.latency, plots.size_by_kind)


class Tags(HTMLParser):
    """Every start tag with its attributes, the texts, and whether tags close in order."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def everything_evil() -> dict[str, Any]:
    """The report with a hostile string wherever a target, a data set or a machine may put one."""
    target = {"teacher": spec.Teacher(source=EVIL, licence=EVIL), "device": spec.Device(name=EVIL, isa="x86_64")}
    report = made.report(**target)
    report |= {"target": EVIL, "run": EVIL, "versions": {EVIL: EVIL}, "audit": {EVIL: EVIL}}
    report["task"] |= {"labels": [EVIL], "sources": {"train": EVIL, "test": EVIL}, "fingerprint": EVIL}
    report["machine"] |= {"cpu": EVIL, "os": EVIL, "flags": [EVIL]}
    report["training"]["quantize"] |= {"calibration": EVIL, "keep_float": [EVIL], "scheme": EVIL}
    for row in report["rows"][:3]:
        row |= {"valid": False, "why_invalid": EVIL}
    report["rows"][4]["artifact"] = EVIL
    return report


def test_the_page_loads_nothing_from_anywhere() -> None:
    for tag, given in Tags(PAGE).found:
        assert tag not in ("img", "iframe", "object", "embed", "base", "audio", "video", "source", "use", "image"), tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
            assert given.get(name) in (None, "data:,"), (tag, given)
        assert tag != "script" or not given
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", PAGE)
    addresses = set(re.findall(r"https?:[^\s\"'<>]+", PAGE))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name space, never fetched
    assert "default-src 'none'" in PAGE  # and the browser is told so


def test_all_tags_close_in_order() -> None:
    assert Tags(PAGE).open == []


def test_hostile_names_are_text_everywhere() -> None:
    page = html.render(everything_evil())
    found = Tags(page)
    assert found.open == []
    assert sum(tag == "script" for tag, _ in found.found) == 1
    assert not any(tag == "img" for tag, _ in found.found)
    assert not any(name.startswith("on") for _, given in found.found for name in given)
    assert EVIL in "".join(found.texts)


def test_the_headline_is_on_the_page_as_it_is_in_the_report() -> None:
    texts = Tags(PAGE).texts
    for line in REPORT["headline"] + REPORT["limits"]:
        assert line in texts


@pytest.mark.parametrize(
    ("budget", "smoke", "words"),
    [
        (spec.Budget(size_mib=2), False, {"Budget met"}),
        (spec.Budget(size_mib=1), True, {"SMOKE", "Budget failed"}),
        (spec.Budget(), False, {"No budget"}),
    ],
)
def test_a_badge_says_whether_the_budget_is_met(budget: spec.Budget, smoke: bool, words: set[str]) -> None:
    page = html.render(made.report(budget=budget, smoke=smoke))
    assert set(re.findall(r'<span class="badge \w+">([^<]+)<', page)) == words


def test_every_row_is_in_the_sortable_table_with_its_figures_as_numbers() -> None:
    body = PAGE.partition('<table id="table">')[2].partition("</table>")[0]
    rows = body.partition("<tbody>")[2].split("</tr>")[:-1]
    assert len(rows) == len(REPORT["rows"])
    heads = len(re.findall(r'<th scope="col"[^>]*><button type="button">', body))
    assert all(row.count("<td") == heads for row in rows)
    p50 = {str(row["p50_ms"]) for row in REPORT["rows"]}
    assert p50 <= set(re.findall(r'data-v="([^"]*)"', body))


def test_a_row_of_a_fixed_length_does_not_tell_its_files_score_again() -> None:
    body = PAGE.partition('<table id="table">')[2].partition("</table>")[0]
    real = [row for row in REPORT["rows"] if row["workload"] == "real"]
    assert body.count('data-v="0.9712"') == sum(row["score"] == 0.9712 for row in real) == 2


def test_the_same_report_is_the_same_page() -> None:
    assert html.render(made.report()) == PAGE


def test_an_empty_report_still_renders() -> None:
    report = REPORT | {"rows": [], "latency": [], "sizes": {}, "budget": []}
    report["verdicts"] = REPORT["verdicts"] | {"speed": [], "today": []}
    assert Tags(html.render(report)).open == []


# --------------------------------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
@pytest.mark.parametrize("report", [REPORT, everything_evil()], ids=["plain", "evil"])
def test_a_chart_is_well_formed_xml_within_its_frame(chart: Any, report: dict[str, Any]) -> None:
    root = ElementTree.fromstring(chart(report))
    width, height = (float(part) for part in root.get("viewBox", "").split()[2:])
    for node in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert -60 <= float(node.get(name, 0)) <= width, (node.tag, node.attrib)
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(node.get(name, 0)) <= height


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_every_mark_can_be_reached_by_keyboard_and_says_what_it_is(chart: Any) -> None:
    root = ElementTree.fromstring(chart(REPORT))
    marks = [node for node in root.iter() if node.get("data-tip")]
    assert len(marks) >= 5
    assert all(mark.get("tabindex") == "0" and mark.get("aria-label") == mark.get("data-tip") for mark in marks)


def test_a_better_score_is_drawn_higher_and_a_slower_artifact_further_right() -> None:
    root = ElementTree.fromstring(plots.accuracy_against_latency(REPORT) or "")
    spots = {
        node.get("data-tip", "").partition(":")[0]: next(c for c in node if c.get("class") == "dot")
        for node in root.iter()
        if node.get("data-tip")
    }
    teacher, student = spots["teacher fp32, onnxruntime"], spots["student, QAD int8, onnxruntime"]
    assert float(teacher.get("cy", 0)) < float(student.get("cy", 0))
    assert float(teacher.get("cx", 0)) > float(student.get("cx", 0))


def test_invalid_rows_are_not_drawn_against_latency() -> None:
    table = made.rows()
    made.spoil(table[4], "unstable")
    report = made.report(table)
    assert "student, QAD int8, onnxruntime" not in (plots.accuracy_against_latency(report) or "")
    assert "student, QAD int8" not in (plots.latency(report) or "")


def test_a_chart_without_anything_to_show_is_none() -> None:
    empty = REPORT | {"rows": [], "latency": [], "sizes": {}}
    assert [chart(empty) for chart in CHARTS] == [None] * 4


def test_stacked_bars_are_as_long_as_the_bytes() -> None:
    root = ElementTree.fromstring(
        plots.size_by_kind(REPORT | {"sizes": {"student_qad": made.sizes()["student_qad"]}}) or ""
    )
    bars = {node.get("class"): float(node.get("width", 0)) for node in root.iter() if node.tag.endswith("rect")}
    size = {f"k-{t['kind']}": t["bytes"] for t in made.sizes()["student_qad"]}
    scale = sum(bars.values()) / sum(size.values())
    assert bars == {kind: pytest.approx(scale * count, abs=0.02) for kind, count in size.items()}


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.9, 120, True), (1, 1.5, True), (0.96, 0.98, False), (0, 90, False)]
)
def test_an_axis_has_a_handful_of_round_ticks_within_it(low: float, high: float, log: bool) -> None:
    from edgekd.report.svg import Axis

    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
    assert all(len(f"{tick:.6g}".replace(".", "").strip("0")) <= 3 for tick in ticks)


def test_labels_do_not_cover_each_other() -> None:
    from edgekd.report import svg

    spots = [(100.0 + i, 100.0 + i, "a label of some length") for i in range(8)]
    places = svg.place(spots, [], (0, 0, 600, 400))
    boxes = [
        (x, y - 11, x + svg.CHARACTER * len(text), y + 3) for (x, y), (_, _, text) in zip(places, spots, strict=True)
    ]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_artifacts_have_colours_in_both_themes() -> None:
    for name in (*(f"--a-{n}" for n in figures.ARTIFACTS), *(f"--k-{n}" for n in figures.KINDS)):
        assert PAGE.count(f"{name}: #") == 2
