"""What a report's figures mean: the budget, quantized against fp32, QAD against the best PTQ. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import statistics
from edgekd.report import figures, intervals
from edgekd.spec import Budget

Row = Mapping[str, Any]

SHIPPED = "student_qad"

UNTRAINED = {"verdict": "unknown", "why": "not trained under quantization: PTQ was within the budget"}
"""The quality of QAD where there is none."""


def budget_lines(
    budget: Budget,
    rows: Sequence[Row],
    runtime: str,
    precision: str = "int8",
    black_box: Row | None = None,
    host: str | None = None,
) -> list[dict[str, Any]]:
    """One line per figure that ``budget`` asks for, of the shipped artifact in ``runtime``, one thread, real lengths.

    ``met`` is None where nothing can be said, and ``why`` says why. What comes off the clock or out of a child's memory
    needs a VALID row; bytes and scores do not become wrong because a machine was noisy. ``precision``: as in
    ``figures.artifact``, here and below. ``black_box`` stands for the row of a teacher that has none. ``host`` is the
    device whose times and memory count, where that is not the run's own machine.
    """
    lines = []
    for field in dataclasses.fields(budget):
        limit = getattr(budget, field.name)
        if limit is None:
            continue
        ask = _ASKS[field.name]
        like = {"runtime": runtime, "threads": 1, "workload": "real", "host": host if ask.needs_valid else None}
        shipped, teacher = (figures.find(rows, name, like) for name in (SHIPPED, "teacher_fp32"))
        teacher = black_box or teacher
        why = _unjudged(ask, shipped, teacher, like, precision)
        measured = None if why else ask.read(shipped, teacher)
        met = None if measured is None else measured <= limit if ask.sense == "at most" else measured >= limit
        line = {
            "name": field.name,
            "limit": limit,
            "measured": measured,
            "met": met,
            "sense": ask.sense,
            "unit": ask.unit,
        }
        judged = shipped if field.name == "speedup" and measured is not None and shipped else {}
        line |= {"low": judged.get("speedup_low"), "high": judged.get("speedup_high")}
        lines.append(line | {"why": why or (None if measured is not None else "the rows have no such figure")})
    return lines


@dataclasses.dataclass(frozen=True)
class _Ask:
    sense: str
    unit: str
    read: Callable[[Any, Any], float | None]
    needs_valid: bool = True
    needs_teacher: bool = False


def _share(over: str) -> Callable[[Any, Any], float | None]:
    def read(shipped: Row, teacher: Row) -> float | None:
        mine, its = shipped.get(over), teacher.get(over)
        if mine is None or not its:
            return None
        return float(mine / its) if over == "score" else float(its / mine) if mine else None

    return read


_ASKS = {
    "p50_ms": _Ask("at most", "ms", lambda s, t: s.get("p50_ms")),
    "p90_ms": _Ask("at most", "ms", lambda s, t: s.get("p90_ms")),
    "size_mib": _Ask("at most", "MiB", lambda s, t: s.get("size_mib"), needs_valid=False),
    "peak_rss_mib": _Ask("at most", "MiB", lambda s, t: s.get("peak_rss_mib")),
    "score_kept": _Ask("at least", "%", _share("score"), needs_valid=False, needs_teacher=True),
    "speedup": _Ask("at least", "x", lambda s, t: s.get("speedup_vs_teacher"), needs_teacher=True),
    "shrink": _Ask("at least", "x", _share("size_bytes"), needs_valid=False, needs_teacher=True),
}


def _unjudged(ask: _Ask, shipped: Row | None, teacher: Row | None, like: Row, precision: str) -> str | None:
    """Why nothing can be said, if so."""
    for name, row in ((SHIPPED, shipped), ("teacher_fp32", teacher)) if ask.needs_teacher else ((SHIPPED, shipped),):
        if row is None:
            return f"no row for {figures.artifact(name, precision)}, {figures.where(like)}"
        if not row["valid"] and (ask.needs_valid or row.get("size_bytes") is None):
            return _invalid(row, precision)
    return None


def _invalid(row: Row, precision: str) -> str:
    what = "is INVALID" if figures.state(row) == "INVALID" else "was not measured"
    return f"{figures.artifact(row['artifact'], precision)} {what}: {row['why_invalid'] or 'no reason given'}"


def budget_met(lines: Sequence[dict[str, Any]]) -> bool | None:
    """False if any line fails; else None if any is undecided or nothing is asked; else True."""
    found = [line["met"] for line in lines]
    return False if False in found else None if None in found or not found else True


def race(rows: Sequence[Row], base: str, other: str, precision: str = "int8") -> list[dict[str, Any]]:
    """``other`` against ``base`` wherever both have a row, from their rounds' p50s: verdict, ratio, 95% interval.

    ``ratio`` above 1: ``other`` is faster. ``verdict`` is ``unknown`` (with ``why``) where a row is INVALID or there is
    only one round.
    """
    found = []
    for row in rows:
        mate = figures.find(rows, base, row) if row["artifact"] == other else None
        if mate is None:
            continue
        line: dict[str, Any] = {name: row.get(name) for name in figures.CONDITION}
        line |= {"verdict": "unknown", "ratio": None, "low": None, "high": None, "rounds": row["rounds"], "why": None}
        invalid = next((r for r in (row, mate) if not r["valid"]), None)
        base_ms, other_ms = mate["round_p50_ms"], row["round_p50_ms"]
        if invalid is not None:
            line["why"] = _invalid(invalid, precision)
        elif not 2 <= len(base_ms) == len(other_ms):
            line["why"] = "an interval needs two rounds or more, the same for both"
        else:
            ratio = statistics.speedup(base_ms, other_ms)
            line |= {"verdict": statistics.verdict(ratio.low, ratio.high), "ratio": ratio.value}
            line |= {"low": ratio.low, "high": ratio.high}
        found.append(line)
    return found


def quality(qad: NDArray[np.bool_] | None, ptq: NDArray[np.bool_] | None) -> dict[str, Any]:
    """QAD against the best PTQ from what each got right on the same test examples (bool arrays of shape (N,)).

    ``better`` or ``worse`` only if both the interval and McNemar's exact test say so; ``unknown`` without the arrays.
    """
    if qad is None or ptq is None or qad.shape != ptq.shape:
        return {"verdict": "unknown", "why": "the test examples' answers of both were not found"}
    found = intervals.paired_difference(qad, ptq)
    sure = found["p"] < 0.05 and (found["low"] > 0 or found["high"] < 0)
    verdict = "same" if not sure else "better" if found["difference"] > 0 else "worse"
    return {"verdict": verdict, "why": None, **found}
