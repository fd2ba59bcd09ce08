"""What follows from a report's rows: budget, verdicts, headline, limits. So rows may come later, from a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.report import choice, devices, figures, headline, limits, verdicts
from edgekd.spec import Budget

CONCLUSIONS = ("headline", "budget", "budget_met", "verdicts", "ship")
"""Their fields, in a report's order; its ``limits`` are its end."""


def conclude(report: Mapping[str, Any], budget: Budget, quality: Mapping[str, Any], runtime: str) -> dict[str, Any]:
    """The report with its conclusions, which ``runtime`` decides.

    The budget's times are judged on the device that the target is for, where one has measured the shipped student and
    the run's own machine is none (``devices.judge``). ``quality`` is ``verdicts.quality``'s.
    """
    rows, precision = report["rows"], figures.precision(report)
    teacher, host = report["teacher"], devices.judge(report, runtime)
    black_box = {"valid": True, **teacher["scores"]["test"]} if teacher["black_box"] else None
    lines = verdicts.budget_lines(budget, rows, runtime, precision, black_box, host)
    speed = verdicts.race(rows, "student_fp32", verdicts.SHIPPED, precision)
    today = verdicts.race(rows, "teacher_ort_dynamic", verdicts.SHIPPED, precision)
    chosen = choice.choices(budget, rows, runtime, precision, black_box)
    ptq = (report["training"]["quantize"] or {}).get("ptq", "")
    found = {
        **report,
        "headline": headline.headline(
            *(report["smoke"], lines, speed, today, dict(quality), ptq, rows, runtime, precision, black_box, host),
            choices=chosen,
        ),
        "budget": lines,
        "budget_met": verdicts.budget_met(lines),
        "verdicts": {
            "int8_vs_fp32": _word(speed, runtime, host),
            "int8_vs_teacher_ort_dynamic": _word(today, runtime, host),
            "qad_vs_ptq": quality["verdict"],
            "speed": speed,
            "today": today,
            "quality": dict(quality),
        },
        "ship": chosen,
    }
    return found | {"limits": limits.limits(found)}


def again(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report whose rows have changed, with conclusions of them all; what was asked stands in itself."""
    budget = Budget(**{line["name"]: line["limit"] for line in report["budget"]})
    runtime = report["rows"][0]["runtime"] if report["rows"] else "ort_cpu"
    return conclude(report, budget, report["verdicts"]["quality"], runtime)


def _word(lines: list[dict[str, Any]], runtime: str, host: str | None) -> str:
    main = {"runtime": runtime, "threads": 1, "workload": "real"}
    found = [line for line in lines if all(line[k] == v for k, v in main.items())]
    mine = {line["host"]: line["verdict"] for line in found}
    return str(mine.get(host, mine.get(None, "unknown")))
