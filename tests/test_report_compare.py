from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import report_fixture as made

from edgekd import spec
from edgekd.report import compare, conclude, html

BASE = made.report()
SLOW = made.report(made.rows(speed={"student_qad": 1.1}))
STAND_IN = made.report(device=spec.Device(name="Raspberry Pi 5", isa="aarch64", features=("asimddp",)))
"""The same figures, taken for another device than the machine is."""


def slowed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with one and a half times their p50."""
    return [
        row | {"p50_ms": 1.5 * row["p50_ms"], "round_p50_ms": [1.5 * took for took in row["round_p50_ms"]]}
        for row in rows
    ]


def find(found: dict[str, Any], figure: str, artifact: str = "student_qad", workload: str = "real") -> dict[str, Any]:
    place = {"artifact": artifact, "runtime": "ort_cpu", "workload": workload, "figure": figure}
    return next(row for row in found["rows"] if all(row[k] == v for k, v in place.items()))


def test_a_report_does_not_differ_from_itself() -> None:
    found = compare.compare([BASE, BASE])
    assert {row["verdict"] for row in found["rows"]} == {"same", "unknown"}
    assert list(found["only"].values()) == [[], []]
    assert "## More than noise" not in compare.render(found)


def test_a_tenth_slower_is_worse_in_p50_and_speedup_and_only_there() -> None:
    found = compare.compare([BASE, SLOW])
    noticed = {(row["artifact"], row["figure"]) for row in found["rows"] if row["verdict"] not in ("same", "unknown")}
    assert noticed == {("student_qad", "p50_ms"), ("student_qad", "speedup_vs_teacher")}
    p50 = find(found, "p50_ms")
    assert p50["verdict"] == "worse"
    assert p50["low"] < 1.1 < p50["high"]
    assert find(found, "speedup_vs_teacher")["change"] == pytest.approx(1 / 1.1, rel=0.01)


def test_a_faster_smaller_and_better_run_is_better() -> None:
    other = copy.deepcopy(BASE)
    for row in other["rows"]:
        row["round_p50_ms"] = [t / 2 for t in row["round_p50_ms"]]
        row["p50_ms"] /= 2
        row["size_mib"] *= 0.99
        row["score"] = None if row["score"] is None else row["score"] + 0.02
    found = compare.compare([BASE, other])
    for figure in ("p50_ms", "size_mib", "score"):
        assert find(found, figure)["verdict"] == "better"


def test_a_few_bytes_more_are_no_difference() -> None:
    other = copy.deepcopy(BASE)
    for row in other["rows"]:
        row["size_mib"] *= 1.0005
    assert find(compare.compare([BASE, other]), "size_mib")["verdict"] == "same"


def test_swapping_the_reports_swaps_the_verdict() -> None:
    forth, back = (find(compare.compare(pair), "p50_ms") for pair in ((BASE, SLOW), (SLOW, BASE)))
    assert (forth["verdict"], back["verdict"]) == ("worse", "better")
    assert (back["low"], back["high"]) == pytest.approx((1 / forth["high"], 1 / forth["low"]))


def test_what_a_file_answers_is_compared_once_a_runtime() -> None:
    found = compare.compare([BASE, BASE])["rows"]
    assert {row["workload"] for row in found if row["figure"] in ("score", "agreement", "kl")} == {"real"}


def test_a_few_examples_more_or_less_are_noise() -> None:
    other = copy.deepcopy(BASE)
    for row in other["rows"]:
        row["score"] = None if row["score"] is None else row["score"] - 0.002
    assert find(compare.compare([BASE, other]), "score")["verdict"] == "same"


def test_figures_without_an_interval_are_not_judged() -> None:
    other = copy.deepcopy(BASE)
    for row in other["rows"]:
        row["p99_ms"] *= 3
    found = find(compare.compare([BASE, other]), "p99_ms")
    assert (found["verdict"], found["change"]) == ("unknown", pytest.approx(3))


def test_times_of_invalid_rows_are_not_judged_but_their_sizes_are() -> None:
    table = made.rows(speed={"student_qad": 2})
    for row in table:
        row["size_mib"] *= 2
        made.spoil(row, "unstable")
    found = compare.compare([BASE, made.report(table)])
    assert find(found, "p50_ms")["verdict"] == "unknown"
    assert find(found, "size_mib")["verdict"] == "worse"


def test_scores_on_other_data_are_not_judged() -> None:
    other = copy.deepcopy(BASE)
    other["task"]["fingerprint"] = "cd" * 32
    other["rows"][4]["score"] = 0.5
    found = compare.compare([BASE, other])
    assert find(found, "score")["verdict"] == "unknown"
    assert any("data differ" in note for note in found["notes"])


def test_another_machine_other_versions_and_a_smoke_run_are_noted() -> None:
    other = made.report(smoke=True)
    other["machine"] = other["machine"] | {"cpu": "Cortex-A76"}
    other["versions"] = other["versions"] | {"onnxruntime": "1.32.0"}
    notes = " ".join(compare.compare([BASE, other])["notes"])
    assert "Cortex-A76" in notes
    assert "onnxruntime 1.31.1 → 1.32.0" in notes
    assert "SMOKE" in notes


def test_rows_that_one_report_has_alone_are_named() -> None:
    other = copy.deepcopy(BASE)
    other["rows"] = [row for row in other["rows"] if row["runtime"] != "openvino"]
    found = compare.compare([BASE, other])
    assert [len(rows) for rows in found["only"].values()] == [5, 0]
    assert "Not in every run, but in reuters_x86" in compare.render(found)


def test_a_rendering_shows_what_changed_and_marks_what_is_no_noise() -> None:
    text = compare.render(compare.compare([BASE, SLOW]))
    table = text.partition("## 1 thread, real lengths")[2].splitlines()
    lines = [line for line in table if line.startswith("| student, shipped int8 | onnxruntime |")][:2]
    assert "| 0.900 |" in lines[0] and "**" not in lines[0]
    assert "| **0.990** worse |" in lines[1] and "| 2.57 |" in lines[1]


@pytest.mark.parametrize("proxied", [(False, False), (True, False), (False, True), (True, True)])
def test_a_figure_is_marked_as_a_stand_ins_where_its_own_run_was_one(proxied: tuple[bool, bool]) -> None:
    reports = [(STAND_IN if side else BASE) | {"run": run} for side, run in zip(proxied, ("one", "two"), strict=True)]
    reports[1] = conclude.again(reports[1] | {"rows": slowed(reports[1]["rows"])})
    found = compare.compare(reports)
    text, page = compare.render(found), html.render_comparison(reports)
    runs = dict(zip(("one", "two"), proxied, strict=True))
    assert {run for run in runs if f"{run}: host-proxy: measured on" in text} == {run for run in runs if runs[run]}
    for _, _, lines in compare.side_by_side(found):
        assert {(line["run"], *line["caveats"]) for line in lines} == {(r, *["host-proxy"][: runs[r]]) for r in runs}
    table = text.partition("## 1 thread, real lengths")[2].partition("\n\n## ")[0]
    for run, side in runs.items():
        rows = [line for line in table.splitlines() if f"| {run}" in line]
        assert rows and {"host-proxy" in line for line in rows} == {side}
    tags = sum(len(lines) for _, _, lines in compare.side_by_side(found)) // 2 * sum(proxied)
    assert page.count('<span class="tag">host-proxy</span>') == tags
    p50 = next(row for row in compare.noticed(found) if row["figure"] == "p50_ms")
    assert tuple("host-proxy" in cell for cell in compare.line(p50, "int8")[4:6]) == proxied
    assert "host-proxy" not in compare.line(p50, "int8")[2]
    for name, *sides in compare.budget(found):
        timed = name in ("p50", "p90", "peak RSS", "speed-up over the teacher")
        assert tuple("host-proxy" in side for side in sides) == tuple(side and timed for side in proxied)
    for side in (cell for _, *sides in compare.budget(found) for cell in sides):
        assert compare.escape(side) in text and side in page
    assert ("host-proxy" in text) == ("host-proxy" in page) == any(proxied)


def test_bytes_that_differ_are_the_same_on_any_machine() -> None:
    other = copy.deepcopy(STAND_IN)
    for row in other["rows"]:
        row["size_mib"] *= 0.9
    sizes = [row for row in compare.noticed(compare.compare([BASE, other])) if row["figure"] == "size_mib"]
    assert sizes and not any("host-proxy" in cell for row in sizes for cell in compare.line(row, "int8"))


def test_several_runs_are_each_compared_with_the_first_and_told_apart() -> None:
    small = copy.deepcopy(BASE)
    for row in small["rows"]:
        row["size_mib"] *= 0.9
    small["run"] = "small"
    found = compare.compare([BASE, SLOW, small, BASE])
    assert found["runs"] == [f"reuters_x86 ({BASE['created']}) [{i}]" for i in (1, 2)] + [
        "small", f"reuters_x86 ({BASE['created']}) [4]"
    ]  # fmt: skip
    said = {run: {row["verdict"] for row in found["rows"] if row["run"] == run} for run in found["runs"]}
    assert said == {
        run: words | {"same", "unknown"} if words is not None else set()
        for run, words in zip(found["runs"], (None, {"worse"}, {"better"}, set()), strict=True)
    }
    differ = {(row["run"], row["figure"]) for row in compare.noticed(found)}
    assert differ == {(found["runs"][1], "p50_ms"), (found["runs"][1], "speedup_vs_teacher"), ("small", "size_mib")}
    for _, columns, lines in compare.side_by_side(found):
        assert [one["run"] for one in lines[:4]] == found["runs"]  # one below the other
        assert all(figure.key in lines[1]["cells"] for figure in columns if figure.key != "speedup_vs_teacher")
    pairs = compare.compare([BASE, small])
    assert [row | {"run": ""} for row in pairs["rows"]] == [
        row | {"run": ""} for row in found["rows"] if row["run"] == "small"
    ]


def test_a_page_of_a_comparison_has_every_line_and_marks_what_is_no_noise() -> None:
    reports = [BASE, SLOW, made.report(made.everywhere())]
    page = html.render_comparison(reports)
    found = compare.compare(reports)
    assert page.count('<tr>\n<td class="nowrap">') == sum(len(lines) for _, _, lines in compare.side_by_side(found))
    assert len(re.findall(r'<td class="nowrap worse" data-v="[^"]+">', page)) == len(compare.noticed(found)) == 10
    assert "tinyweb" in page and "runs_against" not in page and 'class="mark"' in page


def test_hostile_names_are_text_on_the_page_of_a_comparison() -> None:
    evil = copy.deepcopy(BASE) | {"run": "</script><img src=x onerror=alert(1)>"}
    evil["rows"][0]["artifact"] = evil["rows"][1]["runtime"] = evil["run"]
    page = html.render_comparison([evil, evil, BASE])
    assert "<img" not in page and page.count("<script") == 1 and "&lt;img" in page
    assert "No difference that is more than noise." in page and 'class="nowrap worse"' not in page
