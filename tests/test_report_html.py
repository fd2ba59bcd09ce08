from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_fixture as made

from edgekd import spec
from edgekd.report import figures, html, plots, tensors
from edgekd.store import write_json

REPORT = made.report()
PAGE = html.render(REPORT)
EVIL = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
CHARTS = (plots.accuracy_against_size, plots.accuracy_against_latency, plots.latency, plots.size_by_kind)
SVG = "{http://www.w3.org/2000/svg}"


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
    target = {
        "teacher": spec.Teacher(source=EVIL, licence=EVIL),
        "device": spec.Device(name=EVIL, isa="x86_64", features=("avx_vnni",)),
    }
    report = made.report(**target)
    report |= {"target": EVIL, "run": EVIL, "versions": {EVIL: EVIL}, "audit": {EVIL: EVIL}}
    report["task"] |= {"labels": [EVIL], "sources": {"train": EVIL, "test": EVIL}, "fingerprint": EVIL}
    report["machine"] |= {"cpu": EVIL, "os": EVIL, "flags": [EVIL]}
    report["training"]["quantize"] |= {"calibration": EVIL, "keep_float": [EVIL], "scheme": EVIL}
    for row in report["rows"][:3]:
        row |= {"valid": False, "why_invalid": EVIL}
    report["rows"][4]["artifact"] = EVIL
    report["isa"] = [made.OTHER | {"cpu": EVIL, "emulator": EVIL, "native_cpu": EVIL}]
    report["sizes"][EVIL] = report["sizes"].pop("student_ptq")
    return report


def test_the_page_loads_nothing_from_anywhere() -> None:
    for tag, given in Tags(PAGE).found:
        assert tag not in ("img", "iframe", "object", "embed", "base", "audio", "video", "source", "image"), tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
            assert given.get(name) in (None, "data:,") or (given[name] or "").startswith("#"), (tag, given)
        assert tag != "script" or not given
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", PAGE)
    addresses = set(re.findall(r"https?:[^\s\"'<>]+", PAGE))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name space, never fetched
    assert "default-src 'none'" in PAGE  # and the browser is told so


def test_what_a_chart_refers_to_is_in_the_page_once() -> None:
    given = [attributes for _, attributes in Tags(PAGE).found]
    ids = [attributes["id"] for attributes in given if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(attributes.get("href") or "data:").removeprefix("#") for attributes in given} - {"data:", "data:,"}
    links |= set(re.findall(r"url\(#([^)]+)\)", PAGE))
    assert len(links) > 8 and links <= set(ids)


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


def test_what_was_verified_on_other_instruction_sets_is_on_the_page() -> None:
    page = html.render(REPORT | {"isa": [made.ISA, made.OTHER], "rows": [], "sizes": {}})
    assert [word in page for word in ("cortex-a76, emulated by", "256 of 256", ">same<", ">other answers<")] == [
        True
    ] * 4
    assert 'id="isa"' not in html.render(REPORT | {"isa": [], "rows": [], "sizes": {}})


@pytest.mark.parametrize(
    ("budget", "smoke", "words"),
    [
        (spec.Budget(size_mib=2), False, {"Budget met"}),
        (spec.Budget(size_mib=1), True, {"SMOKE", "Budget failed"}),
        (spec.Budget(), False, {"No budget"}),
    ],
)
def test_a_badge_says_whether_the_budget_is_met(budget: spec.Budget, smoke: bool, words: set[str]) -> None:
    page = html.render(made.report(budget=budget, smoke=smoke) | {"rows": [], "sizes": {}})  # no charts: quick
    assert set(re.findall(r'<span class="badge \w+">([^<]+)<', page)) == words


@pytest.fixture(scope="module")
def everywhere() -> str:
    """The page of a run in many runtimes, on a machine that lacks what the device has, without charts."""
    device = spec.Device(name="Xeon D", isa="x86_64", features=("avx_vnni",))
    report = made.report(made.everywhere(), made.CONVERSIONS, device=device)
    for row in report["rows"]:
        if row["runtime"] == "openvino":
            row["executed"] = {"int8": ["layer.0.dense"], "float": ["layer.0.MatMul", "layer.1.MatMul"]}
    return html.render(report | {"latency": [], "sizes": {}})


def card(page: str, place: str) -> str:
    """The text of a runtime's card."""
    cards = re.findall(r'<article class="card">(.*?)</article>', page, re.DOTALL)
    texts = [" ".join("".join(Tags(found).texts).split()) for found in cards]
    return next(text for text in texts if text.startswith(place + " ") and " on " not in text[: len(place) + 4])


def test_each_runtime_has_a_card_with_what_to_ship_and_what_that_costs(everywhere: str) -> None:
    text = card(everywhere, "LiteRT")
    assert text.startswith("LiteRT 2.3.0 host-proxy Ship: student, shipped int8; 1.80× as fast as the student fp32")
    for fact in ("97.12 %", "99.60 %", "0.720, 1.37, 1.87 ms", "14.0 MiB, the runtime 48.0 MiB", "1.53 MiB"):
        assert fact in text
    assert text.endswith("26 in int8 encoder.layer.*.dense.weight × 26 1 in float classifier.weight")
    assert "1 in int8 layer.0.dense 2 in float layer.*.MatMul × 2" in card(everywhere, "OpenVINO")
    assert card(everywhere, "absent") == "absent skipped Missing here: pip install 'edgekd[absent]'"
    assert card(everywhere, "brittle") == "brittle failed Ship nothing: crashed with SIGSEGV."


def test_what_was_not_measured_says_why_in_its_row_and_caveats_stand_beside_figures(everywhere: str) -> None:
    body = everywhere.partition('<table id="table"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = [" ".join("".join(Tags(row + "</tr>").texts).split()) for row in body.split("</tr>")[:-1]]
    assert len(rows) == len(made.everywhere()) - 8  # two runtimes with one row instead of five
    assert "all 5 artifacts absent real lengths skipped 2 skipped: pip install 'edgekd[absent]'" in rows
    assert "all 5 artifacts brittle real lengths failed 3 crashed with SIGSEGV" in rows
    measured = [row for row in rows if not row.startswith("all 5")]
    assert all(("host-proxy" in row) != ("on Pixel 8" in row) for row in measured)
    assert sum("INVALID 1 host-proxy" in row for row in measured) == 1
    links = set(re.findall(r'href="#(why-\d+)"', everywhere))
    assert links == {"why-1", "why-2", "why-3"} and all(f'id="{link}"' in everywhere for link in links)


def test_every_row_is_in_the_sortable_table_with_its_figures_as_numbers() -> None:
    body = PAGE.partition('<table id="table"')[2].partition("</table>")[0]
    rows = body.partition("<tbody>")[2].split("</tr>")[:-1]
    assert len(rows) == len(REPORT["rows"])
    heads = len(re.findall(r'<th scope="col"[^>]*><button type="button">', body))
    assert all(row.count("<td") == heads for row in rows)
    p50 = {str(row["p50_ms"]) for row in REPORT["rows"]}
    assert p50 <= set(re.findall(r'data-v="([^"]*)"', body))


def test_a_row_of_a_fixed_length_does_not_tell_its_files_score_again() -> None:
    body = PAGE.partition('<table id="table"')[2].partition("</table>")[0]
    real = [row for row in REPORT["rows"] if row["workload"] == "real"]
    assert body.count('data-v="0.9712"') == sum(row["score"] == 0.9712 for row in real) == 2


def test_the_same_report_is_the_same_page() -> None:
    assert html.render(made.report()) == PAGE


def test_an_empty_report_still_renders() -> None:
    report = REPORT | {"rows": [], "latency": [], "sizes": {}, "budget": []}
    report["verdicts"] = REPORT["verdicts"] | {"speed": [], "today": []}
    assert Tags(html.render(report)).open == []


# --------------------------------------------------------------------------------------------------------------- charts


def drawn(chart: Any, report: dict[str, Any] = REPORT) -> ElementTree.Element:
    """The chart, which must be there, as XML."""
    return ElementTree.fromstring(chart(report) or "")


def marks(chart: Any, report: dict[str, Any] = REPORT) -> dict[str, tuple[float, float]]:
    """Mark's name -> where its (first) symbol is, in pixels from the left and from the top."""
    groups = {g.get("id", "").partition("-")[2]: g.find(f".//{SVG}use") for g in drawn(chart, report).iter(f"{SVG}g")}
    return {name: (float(use.get("x", 0)), float(use.get("y", 0))) for name, use in groups.items() if use is not None}


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
@pytest.mark.parametrize("report", [REPORT, everything_evil()], ids=["plain", "evil"])
def test_a_chart_is_well_formed_xml_within_its_frame(chart: Any, report: dict[str, Any]) -> None:
    root = drawn(chart, report)
    width, height = (float(part) for part in root.get("viewBox", "").split()[2:])
    placed = [node for node in root.iter() if node.get("x") and node.tag != f"{SVG}path"]
    assert len(placed) >= 8
    for node in placed:
        assert 0 <= float(node.get("x", 0)) <= width, (node.tag, node.attrib)
        assert 0 <= float(node.get("y", 0)) <= height


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_a_chart_is_one_named_image_in_the_pages_own_font_and_colours(chart: Any) -> None:
    root = drawn(chart)
    assert root.get("role") == "group" and root.get("aria-label")
    texts = list(root.iter(f"{SVG}text"))
    assert texts and all("var(--font)" in node.get("style", "") for node in texts)
    styles = "".join(node.get("style", "") for node in root.iter())
    assert "#" not in styles  # a colour that follows neither theme
    used = set(re.findall(r"var\((--[\w-]+)\)", styles))
    assert used and all(f"{name}:" in PAGE.partition("</style>")[0] for name in used)
    assert not list(root.iter(f"{SVG}style"))


def test_a_better_score_is_drawn_higher_and_a_slower_artifact_further_right() -> None:
    found = marks(plots.accuracy_against_latency)
    teacher, student = found["mark-teacher_fp32-ort_cpu"], found["mark-student_qad-ort_cpu"]
    assert teacher[0] > student[0] and teacher[1] < student[1]
    for name, (x, _) in found.items():  # SPEED: OpenVINO is the faster one
        if name.startswith("mark-") and name.endswith("-openvino"):
            assert x < found[name.replace("openvino", "ort_cpu")][0]


def area(use: ElementTree.Element, shapes: dict[str, str]) -> float:
    """The area of a mark that is a polygon, by the shoelace formula."""
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", shapes[use.get("href", "#")[1:]])]
    return abs(sum(a * d - b * c for (a, b), (c, d) in zip(points, points[1:] + points[:1], strict=True))) / 2


def test_the_area_of_a_mark_is_the_size_of_its_file_whatever_its_shape() -> None:
    sizes = {"openvino": 40.0, "ort_mobile": 20.0, "litert": 10.0, "tinyweb": 5.0, "absent": 80.0, "brittle": 60.0}
    row = next(row for row in REPORT["rows"] if row["runtime"] == "openvino")  # the circle is for the first
    rows = [REPORT["rows"][0], *(row | {"runtime": name, "size_mib": mib} for name, mib in sizes.items())]
    root = drawn(plots.accuracy_against_latency, REPORT | {"rows": rows})
    shapes = {path.get("id", ""): path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("id")}
    drawn_areas = {}
    for group in root.iter(f"{SVG}g"):
        name = group.get("id", "").partition("p50_ms-mark-teacher_fp32-")[2]
        if name in sizes and (use := group.find(f".//{SVG}use")) is not None:
            drawn_areas[name] = area(use, shapes)
    assert len({shapes[key] for key in shapes}) >= len(sizes)
    scale = drawn_areas["openvino"] / sizes["openvino"]
    assert drawn_areas == {name: pytest.approx(scale * mib, rel=0.02) for name, mib in sizes.items()}


def test_every_mark_tells_its_figures_and_one_of_a_chart_is_reached_by_the_tabulator() -> None:
    for chart in CHARTS:
        told = [g for g in drawn(chart).iter(f"{SVG}g") if g.get("class") == "mark"]
        assert len(told) >= 5 and [g.get("tabindex") for g in told] == ["0"] + ["-1"] * (len(told) - 1)
        assert all(g.get("role") == "img" and g.findtext(f"{SVG}title") == g.get("aria-label") for g in told)
    tips = {g.get("id"): g.get("aria-label") for g in drawn(plots.accuracy_against_latency).iter(f"{SVG}g")}
    assert (
        tips["p50_ms-mark-student_qad-openvino"] == "student, shipped int8, OpenVINO: 97.12 %, p50 0.766 ms, 1.53 MiB"
    )


def test_a_larger_file_is_drawn_further_right() -> None:
    found = marks(plots.accuracy_against_size)
    places = [found[f"mark-{name}-ort_cpu"][0] for name in figures.ARTIFACTS]
    assert places == sorted(places, reverse=True)


def test_runtimes_differ_in_shape() -> None:
    root = drawn(plots.accuracy_against_latency)
    shapes = {path.get("id"): path.get("d") for path in root.iter(f"{SVG}path") if path.get("id")}
    used = {
        g.get("id"): shapes[use.get("href", "#")[1:]]
        for g in root.iter(f"{SVG}g")
        if (use := g.find(f"./{SVG}g/{SVG}use")) is not None
    }
    for name in figures.ARTIFACTS:
        assert used[f"p50_ms-mark-{name}-ort_cpu"] != used[f"p50_ms-mark-{name}-openvino"]


def test_percentiles_are_where_their_times_are_on_the_scale() -> None:
    root, rows = drawn(plots.latency), {row["artifact"]: row for row in REPORT["rows"][:5]}
    found = marks(plots.latency)
    x = {name: found[f"p50-{name}"][0] for name in rows}
    slow, fast = "teacher_fp32", "student_qad"
    decade = (x[slow] - x[fast]) / math.log10(rows[slow]["p50_ms"] / rows[fast]["p50_ms"])
    for name, row in rows.items():
        tail = next(g for g in root.iter(f"{SVG}g") if g.get("id") == f"latency-tail-{name}")
        p90, p99 = (float(use.get("x", 0)) for use in tail.iter(f"{SVG}use"))
        assert p90 - x[name] == pytest.approx(decade * math.log10(row["p90_ms"] / row["p50_ms"]), abs=0.01)
        assert p99 - x[name] == pytest.approx(decade * math.log10(row["p99_ms"] / row["p50_ms"]), abs=0.01)


def test_invalid_rows_are_not_drawn_against_latency() -> None:
    table = made.rows()
    made.spoil(table[4], "unstable")
    report = made.report(table)
    assert "mark-student_qad-ort_cpu" not in marks(plots.accuracy_against_latency, report)
    assert "mark-student_qad-openvino" in marks(plots.accuracy_against_latency, report)
    assert "student, shipped int8" not in (plots.latency(report) or "")


def test_a_chart_without_anything_to_show_is_none() -> None:
    empty = REPORT | {"rows": [], "latency": [], "sizes": {}}
    assert [chart(empty) for chart in CHARTS] == [None] * 4


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("test", [{}, {"test": 50}])
def test_a_single_row_with_an_extreme_score_is_drawn(score: float, test: dict[str, int]) -> None:
    report = REPORT | {"rows": [REPORT["rows"][0] | {"score": score}], "task": REPORT["task"] | {"counts": test}}
    assert "mark-teacher_fp32-ort_cpu" in marks(plots.accuracy_against_size, report)
    assert "mark-teacher_fp32-ort_cpu" in marks(plots.accuracy_against_latency, report)


def test_stacked_bars_are_as_long_as_the_bytes() -> None:
    root = drawn(plots.size_by_kind, REPORT | {"sizes": {"student_qad": made.sizes()["student_qad"]}})
    bars = {}
    for group in root.iter(f"{SVG}g"):
        if (found := re.fullmatch(r"size--(\w+)-student_qad", group.get("id", ""))) is not None:
            path = next(group.iter(f"{SVG}path")).get("d", "")
            xs = [float(x) for x in re.findall(r"[ML] (\S+) \S+", path)]
            bars[found[1]] = max(xs) - min(xs)
    size = dict.fromkeys(tensors.KINDS, 0) | {t["kind"]: t["bytes"] for t in made.sizes()["student_qad"]}
    scale = sum(bars.values()) / sum(size.values())
    assert bars == {kind: pytest.approx(scale * count, abs=0.02) for kind, count in size.items()}


@pytest.mark.parametrize("spread", [1.0, 1.1, 1.5, 4, 1000])
def test_a_time_axis_has_a_handful_of_values(spread: float) -> None:
    rows = [REPORT["rows"][0] | {"p50_ms": 0.7}, REPORT["rows"][1] | {"p50_ms": 0.7 * spread}]
    root = drawn(plots.accuracy_against_latency, REPORT | {"rows": rows})
    ticks = [g for g in root.iter(f"{SVG}g") if re.fullmatch(r"p50_ms-xtick_\d+", g.get("id", ""))]
    values = [float("".join(tick.itertext()).replace(",", "")) for tick in ticks]
    assert 2 <= len(values) <= 12 and values == sorted(values)


def test_artifacts_have_colours_in_both_themes() -> None:
    for name in (*(f"--a-{n}" for n in figures.ARTIFACTS), *(f"--k-{n}" for n in tensors.KINDS)):
        assert PAGE.count(f"{name}: #") == 2


def test_drawing_leaves_no_settings_behind_and_heeds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 40, "svg.fonttype": "path", "axes.grid": False}):
        assert html.render(REPORT) == PAGE
    assert dict(matplotlib.rcParams) == before


def test_a_page_is_drawn_without_a_home_and_without_pyplot(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", REPORT)
    script = "import json, sys; from edgekd.report import html; assert 'matplotlib' not in sys.modules;"
    script += "page = html.render(json.load(open('report.json')));"
    script += "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules;"
    script += "open('page.html', 'w', encoding='utf-8').write(page)"
    environment = {"HOME": "/dev/null/none", "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(html.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == PAGE
