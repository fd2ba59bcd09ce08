from __future__ import annotations

import copy
from typing import Any

import pytest
import report_fixture as made

from edgekd.report import compare

BASE = made.report()


def find(found: dict[str, Any], figure: str, artifact: str = "student_qad", workload: str = "real") -> dict[str, Any]:
    place = {"artifact": artifact, "runtime": "ort_cpu", "workload": workload, "figure": figure}
    return next(row for row in found["rows"] if all(row[k] == v for k, v in place.items()))


def test_a_report_does_not_differ_from_itself() -> None:
    found = compare.compare(BASE, BASE)
    assert {row["verdict"] for row in found["rows"]} == {"same", "unknown"}
    assert found["only_a"] == found["only_b"] == []
    assert "## More than noise" not in compare.render(found)


def test_a_tenth_slower_is_worse_in_p50_and_speedup_and_only_there() -> None:
    found = compare.compare(BASE, made.report(made.rows(speed={"student_qad": 1.1})))
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
    found = compare.compare(BASE, other)
    for figure in ("p50_ms", "size_mib", "score"):
        assert find(found, figure)["verdict"] == "better"


def test_a_few_bytes_more_are_no_difference() -> None:
    other = copy.deepcopy(BASE)
    for row in other["rows"]:
        row["size_mib"] *= 1.0005
    assert find(compare.compare(BASE, other), "size_mib")["verdict"] == "same"


def test_swapping_the_reports_swaps_the_verdict() -> None:
    slow = made.report(made.rows(speed={"student_qad": 1.1}))
    forth, back = (find(compare.compare(*pair), "p50_ms") for pair in ((BASE, slow), (slow, BASE)))
    assert (forth["verdict"], back["verdict"]) == ("worse", "better")
    assert (back["low"], back["high"]) == pytest.approx((1 / forth["high"], 1 / forth["low"]))


def test_what_a_file_answers_is_compared_once_a_runtime() -> None:
    found = compare.compare(BASE, BASE)["rows"]
    assert {row["workload"] for row in found if row["figure"] in ("score", "agreement", "kl")} == {"real"}


def test_a_few_examples_more_or_less_are_noise() -> None:
    other = copy.deepcopy(BASE)
    for row in other["rows"]:
        row["score"] = None if row["score"] is None else row["score"] - 0.002
    assert find(compare.compare(BASE, other), "score")["verdict"] == "same"


def test_figures_without_an_interval_are_not_judged() -> None:
    other = copy.deepcopy(BASE)
    for row in other["rows"]:
        row["p99_ms"] *= 3
    found = find(compare.compare(BASE, other), "p99_ms")
    assert (found["verdict"], found["change"]) == ("unknown", pytest.approx(3))


def test_times_of_invalid_rows_are_not_judged_but_their_sizes_are() -> None:
    table = made.rows(speed={"student_qad": 2})
    for row in table:
        row["size_mib"] *= 2
        made.spoil(row, "unstable")
    found = compare.compare(BASE, made.report(table))
    assert find(found, "p50_ms")["verdict"] == "unknown"
    assert find(found, "size_mib")["verdict"] == "worse"


def test_scores_on_other_data_are_not_judged() -> None:
    other = copy.deepcopy(BASE)
    other["task"]["fingerprint"] = "cd" * 32
    other["rows"][4]["score"] = 0.5
    found = compare.compare(BASE, other)
    assert find(found, "score")["verdict"] == "unknown"
    assert any("data differ" in note for note in found["notes"])


def test_another_machine_other_versions_and_a_smoke_run_are_noted() -> None:
    other = made.report(smoke=True)
    other["machine"] = other["machine"] | {"cpu": "Cortex-A76"}
    other["versions"] = other["versions"] | {"onnxruntime": "1.32.0"}
    notes = " ".join(compare.compare(BASE, other)["notes"])
    assert "Cortex-A76" in notes
    assert "onnxruntime 1.31.1 → 1.32.0" in notes
    assert "SMOKE" in notes


def test_rows_that_one_report_has_alone_are_named() -> None:
    other = copy.deepcopy(BASE)
    other["rows"] = [row for row in other["rows"] if row["runtime"] != "openvino"]
    found = compare.compare(BASE, other)
    assert len(found["only_a"]) == 5
    assert "Only in reuters\\_x86" in compare.render(found) or "Only in reuters_x86" in compare.render(found)


def test_a_rendering_shows_what_changed_and_marks_what_is_no_noise() -> None:
    text = compare.render(compare.compare(BASE, made.report(made.rows(speed={"student_qad": 1.1}))))
    assert "**0.900 → 0.990**" in text
    assert "2.34 → 2.57" in text
    assert "**2.34 → 2.57**" not in text
