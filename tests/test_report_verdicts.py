from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import report_fixture as made

from edgekd.report import headline, verdicts
from edgekd.spec import Budget

LIKE = {"runtime": "ort_cpu", "threads": 1, "workload": "real"}


def row(table: list[dict[str, Any]], artifact: str, **like: Any) -> dict[str, Any]:
    wanted = {"artifact": artifact, **LIKE, **like}
    return next(r for r in table if all(r[k] == v for k, v in wanted.items()))


def lines(budget: Budget, table: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in verdicts.budget_lines(budget, table, "ort_cpu")}


# --------------------------------------------------------------------------------------------------------------- budget


def test_every_figure_that_a_budget_can_ask_for_is_judged() -> None:
    names = [field.name for field in dataclasses.fields(Budget)]
    found = lines(Budget(**dict.fromkeys(names, 1.0)), made.rows())
    assert list(found) == names
    assert all(line["measured"] is not None for line in found.values())
    assert set(headline.BUDGET) == set(names)


def test_a_budget_is_judged_on_the_shipped_row_of_its_runtime_at_real_lengths() -> None:
    table = made.rows()
    mine, teacher = row(table, "student_qad"), row(table, "teacher_fp32")
    found = lines(Budget(p50_ms=1, p90_ms=1, size_mib=1, peak_rss_mib=1, score_kept=1, speedup=1, shrink=1), table)
    measured = {name: line["measured"] for name, line in found.items()}
    assert measured == {
        "p50_ms": mine["p50_ms"],
        "p90_ms": mine["p90_ms"],
        "size_mib": mine["size_mib"],
        "peak_rss_mib": mine["peak_rss_mib"],
        "score_kept": pytest.approx(0.9712 / 0.9744),
        "speedup": mine["speedup_vs_teacher"],
        "shrink": pytest.approx(teacher["size_bytes"] / mine["size_bytes"]),
    }


@pytest.mark.parametrize(("limit", "met"), [(0.9, True), (0.8999, False)])
def test_a_limit_that_is_reached_exactly_is_met(limit: float, met: bool) -> None:
    table = made.rows()
    row(table, "student_qad")["p50_ms"] = 0.9
    assert lines(Budget(p50_ms=limit), table)["p50_ms"]["met"] is met


def test_times_of_an_invalid_row_decide_nothing_but_bytes_and_scores_do() -> None:
    table = made.rows()
    made.spoil(row(table, "student_qad"), "unstable")
    found = lines(Budget(p50_ms=9, peak_rss_mib=99, speedup=1, size_mib=9, score_kept=0.5, shrink=999), table)
    assert {name: line["met"] for name, line in found.items()} == {
        "p50_ms": None,
        "size_mib": True,
        "peak_rss_mib": None,
        "score_kept": True,
        "speedup": None,
        "shrink": False,
    }
    assert "INVALID: unstable" in found["p50_ms"]["why"]
    assert found["p50_ms"]["measured"] is None


def test_an_invalid_teacher_leaves_the_speedup_undecided_and_the_p50_judged() -> None:
    table = made.rows()
    made.spoil(row(table, "teacher_fp32"), "noisy")
    found = lines(Budget(p50_ms=9, speedup=1), table)
    assert found["p50_ms"]["met"] is True
    assert found["speedup"]["met"] is None


def test_without_a_row_at_one_thread_a_budget_is_undecided_and_says_why() -> None:
    table = [r | {"threads": 2} for r in made.rows()]
    found = lines(Budget(p50_ms=9), table)["p50_ms"]
    assert found["met"] is None
    assert "onnxruntime, 1 thread, real lengths" in found["why"]


@pytest.mark.parametrize(
    ("met", "whole"),
    [([], None), ([True], True), ([True, None], None), ([None, False], False), ([True, False], False)],
)
def test_one_failure_fails_a_budget_and_one_gap_leaves_it_undecided(met: list[bool | None], whole: bool | None) -> None:
    assert verdicts.budget_met([{"met": m} for m in met]) is whole


# ---------------------------------------------------------------------------------------------------------------- speed


def main(table: list[dict[str, Any]]) -> dict[str, Any]:
    found = verdicts.race(table, "student_fp32", "student_qad")
    return next(line for line in found if all(line[k] == v for k, v in LIKE.items()))


def test_int8_is_compared_with_fp32_under_every_condition_that_both_were_measured_in() -> None:
    found = verdicts.race(made.rows(), "student_fp32", "student_qad")
    assert [(line["runtime"], line["threads"], line["workload"]) for line in found] == list(made.CELLS)
    assert {line["verdict"] for line in found} == {"faster"}


def test_a_slower_int8_is_called_slower() -> None:
    found = main(made.rows(speed={"student_qad": 2.0}))
    assert found["verdict"] == "slower"
    assert found["ratio"] == pytest.approx(1.62 / 1.8, rel=0.02)


def test_two_copies_of_one_model_are_called_the_same() -> None:
    assert main(made.rows(speed={"student_qad": 1.8}))["verdict"] == "same"


def test_an_invalid_row_makes_the_comparison_unknown() -> None:
    table = made.rows()
    made.spoil(row(table, "student_fp32"), "crashed with SIGSEGV", figures=False)
    found = main(table)
    assert (found["verdict"], found["ratio"]) == ("unknown", None)
    assert "SIGSEGV" in found["why"]


def test_one_round_makes_the_comparison_unknown() -> None:
    assert main(made.rows(rounds=1))["verdict"] == "unknown"


# -------------------------------------------------------------------------------------------------------------- quality


def answers(n: int, both: int, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    rest = n - both - first - second
    counts = [both, first, second, rest]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [(30, 5, "better"), (5, 30, "worse"), (10, 9, "same"), (0, 0, "same"), (5, 0, "same")],
)
def test_qad_is_better_or_worse_only_where_the_examples_prove_it(first: int, second: int, verdict: str) -> None:
    assert verdicts.quality(*answers(2000, 1900, first, second))["verdict"] == verdict


def test_without_the_answers_qad_against_ptq_is_unknown() -> None:
    found = verdicts.quality(None, np.ones(3, bool))
    assert found["verdict"] == "unknown"
    assert found["why"]


# ------------------------------------------------------------------------------------------------------------- headline


def first_lines(table: list[dict[str, Any]], budget: Budget, *, qad: Any = None, smoke: bool = False) -> list[str]:
    return headline.headline(
        smoke,
        verdicts.budget_lines(budget, table, "ort_cpu"),
        verdicts.race(table, "student_fp32", "student_qad"),
        verdicts.race(table, "teacher_ort_dynamic", "student_qad"),
        verdicts.quality(*(qad or answers(2000, 1900, 10, 9))),
        "mse ranges",
        table,
        "ort_cpu",
    )


def test_a_met_budget_comes_first() -> None:
    found = first_lines(made.rows(), Budget(p50_ms=2, size_mib=2))
    assert found[0] == "BUDGET MET, 2 of 2."


def test_a_failed_budget_names_what_failed_and_comes_first() -> None:
    found = first_lines(made.rows(), Budget(p50_ms=0.5, size_mib=2))
    assert found[0].startswith("BUDGET FAILED, 1 of 2: p50 0.900 ms (at most 0.500 ms)")


def test_a_met_budget_does_not_hide_that_int8_is_slower() -> None:
    found = first_lines(made.rows(speed={"student_qad": 2.0}), Budget(size_mib=2))
    assert found[0] == "BUDGET MET, 1 of 1, but read what follows."
    assert found[1].startswith("int8 is SLOWER than the fp32 student in onnxruntime: it takes 1.11× its time")


def test_int8_slower_in_a_second_runtime_only_is_said_among_the_first_lines() -> None:
    table = made.rows()
    for r in table:
        if (r["runtime"], r["artifact"]) == ("openvino", "student_qad"):
            r["round_p50_ms"] = [3 * t for t in r["round_p50_ms"]]
    found = first_lines(table, Budget(size_mib=2))
    assert "SLOWER than the fp32 student in OpenVINO" in found[1]
    assert any("as fast as the fp32 student" in line for line in found[2:])


def test_qad_that_buys_nothing_is_said_plainly() -> None:
    found = first_lines(made.rows(), Budget(size_mib=2))
    assert found[1].startswith(
        "QAD bought nothing over KD → best PTQ (mse ranges) that this test can show: 97.12 % against 97.08 %"
    )


def test_qad_that_is_worse_is_said_before_what_is_good() -> None:
    found = first_lines(made.rows(), Budget(size_mib=2), qad=answers(2000, 1900, 2, 30))
    assert found[0].endswith("but read what follows.")
    assert found[1].startswith("QAD is WORSE than KD → best PTQ (mse ranges)")
    assert "best PTQ is the one to ship" in found[1]


def test_int8_that_is_larger_than_fp32_is_a_failure() -> None:
    table = made.rows()
    row(table, "student_qad")["size_bytes"] = 7_000_000
    assert any("NOT SMALLER" in line for line in first_lines(table, Budget())[:2])


def test_a_limit_within_the_noise_is_said_to_be() -> None:
    table = made.rows()
    row(table, "student_qad").update(speedup_vs_teacher=12.1, speedup_low=11.8, speedup_high=12.4)
    found = verdicts.budget_lines(Budget(speedup=12), table, "ort_cpu")[0]
    assert "within the noise" in headline.budget_text(found)


def test_a_smoke_run_is_stamped_in_its_very_first_line() -> None:
    assert first_lines(made.rows(), Budget(), smoke=True)[0].startswith("SMOKE")


def test_rows_that_were_all_skipped_make_unknowns_and_no_praise() -> None:
    table = made.rows()
    for r in table:
        made.spoil(r, "skipped: pip install onnxruntime", figures=False)
    found = first_lines(table, Budget(p50_ms=1))
    assert found[0].startswith("BUDGET UNDECIDED")
    assert not any("as fast" in line for line in found)


def test_figures_that_lack_for_one_reason_are_named_together_and_the_reason_once() -> None:
    table = made.rows()
    for r in table:
        made.spoil(r, "50 calls a round, 100 needed", figures=False)
    line = first_lines(table, Budget(p50_ms=1, p90_ms=2, speedup=3))[0]
    assert line.startswith("BUDGET UNDECIDED, 3 of 3 could not be judged: p50, p90, speed-up over the teacher not")
    assert line.count("50 calls a round") == 1
