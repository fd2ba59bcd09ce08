"""Claims about what is to be shipped where, and how the first lines say so."""

from __future__ import annotations

from typing import Any

import pytest
import report_fixture as made

from edgekd.report import choice, executed, figures, headline, verdicts
from edgekd.spec import Budget

ASKED = Budget(score_kept=0.995)


def table(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a runtime at real lengths; ``changes`` are of artifacts' rows, ``times`` multiplies their p50."""
    rows = [row for row in made.rows() if (row["runtime"], row["workload"]) == ("ort_cpu", "real")]
    for row in rows:
        found = dict(changes.get(row["artifact"], {}))
        times = found.pop("times", 1.0)
        row["p50_ms"] *= times
        row["round_p50_ms"] = [took * times for took in row["round_p50_ms"]]
        row.update(found)
    return rows


def choose(rows: list[dict[str, Any]], budget: Budget = ASKED) -> dict[str, Any]:
    (found,) = choice.choices(budget, rows, "ort_cpu")
    return found


def test_what_the_run_ships_is_shipped_where_nothing_is_surely_faster() -> None:
    assert choose(table())["artifact"] == "student_qad"
    alike = choose(table(student_fp32={"times": 0.9 / 1.62}, student_ptq={"times": 0.999 * 0.9 / 0.91}))
    assert alike["artifact"] == "student_qad" and alike["refused"] == {}
    assert "as fast as the student fp32 (95%: " in alike["why"]


def test_where_int8_is_slower_the_fastest_file_that_keeps_what_is_asked_is_shipped_instead() -> None:
    slow = {name: {"times": 3.0} for name in ("student_ptq", "student_qad")}
    found = choose(table(**slow))
    assert found["artifact"] == "student_fp32"
    assert found["why"].startswith("1.6") and "× as fast as the student, shipped int8 (95%: " in found["why"]
    small = choose(table(**slow), Budget(score_kept=0.995, size_mib=2.0))
    assert small["artifact"] == "student_qad"
    assert small["refused"] == {"student_fp32": "5.82 MiB, at most 2.00 MiB asked"}
    assert small["why"].startswith("0.6") and small["why"].endswith("no choice: 5.82 MiB, at most 2.00 MiB asked")
    shrink = choose(table(**slow), Budget(shrink=40))
    assert shrink["refused"] == {"student_fp32": "14.9× smaller than the teacher, at least 40.0× asked"}


def test_a_file_that_loses_the_asked_score_in_a_runtime_is_no_choice_there() -> None:
    found = choose(table(student_qad={"score": 0.91}))
    assert found["artifact"] == "student_ptq"
    assert found["refused"] == {"student_qad": "93.39 % of the teacher's score, at least 99.50 % asked"}


def test_a_row_that_is_not_valid_is_no_choice_and_where_none_is_the_reason_is_told() -> None:
    rows = table()
    made.spoil(rows[4], "noisy")
    assert choose(rows)["refused"] == {"student_qad": "INVALID: noisy"} and choose(rows)["artifact"] == "student_ptq"
    for row in rows:
        made.spoil(row, "crashed with SIGSEGV", figures=False)
    assert (choose(rows)["artifact"], choose(rows)["why"]) == (None, "crashed with SIGSEGV")


def test_every_runtime_and_device_has_a_choice_at_its_main_condition() -> None:
    found = choice.choices(ASKED, made.everywhere(), "ort_cpu")
    said = {figures.place(one): (one["artifact"], figures.condition(one)) for one in found}
    main = "1 thread, real lengths"
    shipped = ("onnxruntime", "OpenVINO", "onnxruntime mobile (.ort)", "LiteRT", "LiteRT on Pixel 8")
    assert said == dict.fromkeys(shipped, ("student_qad", main)) | {
        "tinyweb": ("student_fp32", main),
        "absent": (None, main),
        "brittle": (None, main),
    }
    fixed = [row for row in made.rows() if row["workload"] == "fixed64"]
    assert [figures.condition(one) for one in choice.choices(ASKED, fixed, "ort_cpu")] == ["1 thread, 64 tokens"]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(), "; ship the student fp32 there instead."),
        (
            Budget(size_mib=2),
            "; ship it there all the same, since the fp32 student is no choice (5.82 MiB, at most 2.00",
        ),
    ],
)
def test_the_first_lines_say_where_int8_is_slower_and_what_to_ship_there(budget: Budget, words: str) -> None:
    lines = made.report(made.everywhere(), budget=budget)["headline"]
    (line,) = (line for line in lines if "SLOWER" in line)
    assert lines.index(line) == 1
    assert line.startswith("int8 is SLOWER than the fp32 student in tinyweb: it takes 1.6") and words in line


def test_the_first_lines_say_in_which_other_runtime_int8_is_not_faster() -> None:
    rows = made.rows()
    for row in rows:
        if row["runtime"] == "openvino" and row["artifact"] == "student_fp32":
            mine = next(r for r in rows if r["runtime"] == "openvino" and r["artifact"] == "student_qad")
            row.update(p50_ms=mine["p50_ms"], round_p50_ms=list(mine["round_p50_ms"]))
    speed, chosen = verdicts.race(rows, "student_fp32", "student_qad"), choice.choices(Budget(), rows, "ort_cpu")
    quality = {"verdict": "unknown", "why": "w"}
    lines = headline.headline(False, [], speed, [], quality, "p", rows, "ort_cpu", choices=chosen)
    (line,) = (line for line in lines if "NOT FASTER" in line)
    assert line.startswith("int8 is NOT FASTER than the fp32 student in OpenVINO: 1.00×")
    assert line.endswith("; at real lengths it is what to ship there (1.53 MiB against 5.82 MiB).")


# ------------------------------------------------------------------------------------------------------------- executed


REPORT: dict[str, Any] = {
    "conversions": {"litert": {"student_qad": {"int8": ["a.weight"], "float": [], "delegated_share": 0.5}}},
    "audit": {
        "student_qad": {
            "int8": 2,
            "multiplications": [
                {"node": "layer.0.query", "kind": "int8"},
                {"node": "layer.1.query", "kind": "int8"},
                {"node": "layer.0.MatMul", "kind": "float"},
            ],
        }
    },
}


def row(runtime: str, **given: Any) -> dict[str, Any]:
    return {"runtime": runtime, "artifact": "student_qad", "threads": 1, "workload": "real", **given}


def test_what_runs_in_int8_is_the_runtimes_own_word_or_its_converters_or_that_of_the_audit() -> None:
    told = {"int8": ["x"], "float": ["y"]}
    assert executed.executed(REPORT, row("litert", executed=told)) == told
    assert executed.executed(REPORT, row("litert")) == {"int8": ["a.weight"]}
    assert executed.more(REPORT, row("litert")) == [("delegated share", "0.500")]
    audited = {"int8": ["layer.0.query", "layer.1.query"], "float": ["layer.0.MatMul"]}
    assert executed.executed(REPORT, row("ort_cpu")) == executed.executed(REPORT, row("ort_mobile")) == audited
    assert executed.executed(REPORT, row("brittle")) == {}


def test_names_that_differ_by_their_layer_are_told_once() -> None:
    names = ["bert.layer.0.dense", "bert.layer.11.dense", "pooler", "bert.layer.1.query"]
    assert executed.brief(names) == ["bert.layer.*.dense × 2", "pooler", "bert.layer.1.query"]


def test_a_runtime_that_falls_back_to_float_is_told_among_the_limits() -> None:
    whole, part = {"int8": ["a", "b"], "float": []}, {"int8": ["a"], "float": ["b"]}
    rows = [row("openvino", executed=whole), row("tinyweb", executed=part), row("brittle")]
    assert executed.lost(REPORT | {"rows": rows}) == [
        "tinyweb does 1 of the 2 multiplications that are int8 in the shipped file in float."
    ]
