"""Claims about the report's pages in a real browser: they complain of nothing, ask for nothing, obey the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
import report_fixture as made

from edgekd import spec
from edgekd.report import html

pytestmark = pytest.mark.skipif(chromium.found() is None, reason=f"there is no Chromium: {chromium.INSTALL}")

EVIL = "</script><img src=http://127.0.0.1:9/x onerror=alert(1)>\"'"
DEVICE = spec.Device(name="Xeon D", isa="x86_64", features=("avx_vnni",))
COLUMN = "[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[{}]?.textContent.trim())"
TIP = "(tip => tip.hidden ? null : tip.textContent)(document.getElementById('tip'))"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    report = made.report(made.everywhere(), made.CONVERSIONS, device=DEVICE)
    evil: dict[str, Any] = {**report, "run": EVIL, "limits": [EVIL]}
    evil["rows"] = [{**row, "runtime": EVIL} if row["runtime"] == "tinyweb" else row for row in report["rows"]]
    written = {"report": html.render(report), "compare": html.render_comparison([report, evil])}
    written["evil"] = html.render(evil)
    for name, page in written.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in written}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def opened(tab: chromium.Page, pages: dict[str, Path]) -> chromium.Page:
    """The report, freshly loaded."""
    tab.size(1280)
    tab.open(pages["report"])
    return tab


def column(tab: chromium.Page, name: str) -> list[str]:
    """The cells of a column of the table, from top to bottom."""
    heads = tab.run("[...document.querySelectorAll('#table thead th')].map(head => head.textContent.trim())")
    cells: list[str | None] = tab.run(COLUMN.format(heads.index(name)))
    return [cell or "" for cell in cells]


def focus(tab: chromium.Page, name: str) -> None:
    """Put the keyboard on the heading of a column."""
    tab.run(f"[...document.querySelectorAll('#table th button')].find(b => b.textContent === {name!r}).focus()")


def test_a_page_complains_of_nothing_and_asks_for_nothing_but_itself(
    tab: chromium.Page, pages: dict[str, Path]
) -> None:
    for path in pages.values():
        before = len(tab.requests())
        tab.open(path)
        assert tab.run("document.title").endswith("edgekd")
        asked = [address for address in tab.requests()[before:] if not address.startswith("data:")]
        assert asked == [path.resolve().as_uri()]
        assert tab.run("performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert tab.faults() == [] and not tab.told("Page.javascriptDialogOpening")


def test_the_browser_would_have_told_of_a_fault_and_of_a_request(tab: chromium.Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh'); throw Error('no')</script>")
    faults, asked = len(tab.faults()), len(tab.requests())
    tab.open(bad)
    assert len(tab.faults()) >= faults + 2 and "http://127.0.0.1:9/x.png" in tab.requests()[asked:]
    tab.events.clear()


def test_a_heading_sorts_the_table_by_keyboard_and_back_and_rows_without_figures_stay_below(
    opened: chromium.Page,
) -> None:
    before = column(opened, "p50 (ms)")
    focus(opened, "p50 (ms)")
    opened.press("Enter")
    up = [float(cell) for cell in column(opened, "p50 (ms)")[:-2]]
    assert up == sorted(up) and sorted(column(opened, "p50 (ms)")) == sorted(before)
    assert opened.run("document.querySelector('#table th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    assert {cell.split()[0] for cell in column(opened, "Artifact")[-2:]} == {"all"}
    opened.press("Enter")
    assert [float(cell) for cell in column(opened, "p50 (ms)")[:-2]] == sorted(up, reverse=True)
    focus(opened, "Runtime")
    opened.press("Enter")
    names = column(opened, "Runtime")
    assert names == sorted(names, key=str.casefold) and names[0].startswith("absent")


def test_the_tabulator_reaches_every_heading_and_each_chart_once(opened: chromium.Page) -> None:
    stops = []
    for _ in range(120):
        opened.press("Tab")
        stops.append(
            opened.run("(e => e.closest('svg') ? 'chart ' + e.closest('svg').ariaLabel : e.textContent.trim())"
                       "(document.activeElement)")
        )  # fmt: skip
        if stops[-1].startswith("Throughput"):
            break
    charts = [stop for stop in stops if stop.startswith("chart ")]
    assert len(charts) == len(set(charts)) == opened.run("document.querySelectorAll('svg.chart').length") == 4
    heads = opened.run("[...document.querySelectorAll('#table th button')].map(button => button.textContent)")
    assert [stop for stop in stops if stop in heads] == heads


def test_a_mark_tells_its_figures_under_the_pointer_and_under_the_arrow_keys(opened: chromium.Page) -> None:
    assert opened.run(TIP) is None
    opened.point("#p50_ms-mark-student_qad-openvino use")
    assert opened.run(TIP) == "student, shipped int8, OpenVINO: 97.12 %, p50 0.766 ms, 1.53 MiB, host-proxy"
    opened.point("h1")
    assert opened.run(TIP) is None
    opened.run("document.querySelector('svg.chart .mark[tabindex=\"0\"]').focus()")
    count = opened.run("document.querySelectorAll('svg.chart')[0].querySelectorAll('.mark').length")
    told = [opened.run(TIP)]
    for _ in range(count):
        opened.press("ArrowRight")
        told.append(opened.run(TIP))
    assert len(set(told)) == count and told[-1] == told[0]
    box = opened.run("(b => [b.left, b.right, b.top])(document.getElementById('tip').getBoundingClientRect())")
    assert box[0] >= 0 and box[1] <= 1280 and box[2] >= 0
    opened.press("Escape")
    assert opened.run(TIP) is None


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_but_tables_and_charts_in_frames_of_their_own_is_wider_than_the_window(
    opened: chromium.Page, pages: dict[str, Path], width: int
) -> None:
    opened.size(width)
    for name in ("report", "compare"):
        opened.open(pages[name])
        assert opened.run("document.documentElement.scrollWidth") == width


def test_text_is_legible_in_light_and_in_dark(opened: chromium.Page) -> None:
    script = """(() => {
      const light = c => c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const rgb = text => text.match(/[\\d.]+/g).map(Number);
      const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length === 3) return c; } return [255, 255, 255]; };
      let least = 99;
      for (const e of document.querySelectorAll('main *')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.closest('svg')) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
        least = Math.min(least, (a + .05) / (b + .05));
      }
      return least;
    })()"""
    pages = {}
    for theme in ("light", "dark"):
        opened.media(prefers_color_scheme=theme)
        pages[theme] = opened.run("getComputedStyle(document.body).backgroundColor")
        assert opened.run(script) >= 4.5, theme  # WCAG 2.1, 1.4.3
    opened.media()
    assert pages["light"] != pages["dark"]


def test_a_printed_page_is_white_whole_and_without_what_only_a_screen_can_do(
    opened: chromium.Page, tmp_path: Path
) -> None:
    opened.media(media="print", prefers_color_scheme="dark")
    assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.run("getComputedStyle(document.querySelector('.hint')).display") == "none"
    opened.size(1046)  # A4 across, less its margins
    wide = "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth).length"
    assert opened.run(wide) == 0
    opened.printed(tmp_path / "page.pdf")
    opened.media()
    assert (tmp_path / "page.pdf").read_bytes()[:5] == b"%PDF-"
