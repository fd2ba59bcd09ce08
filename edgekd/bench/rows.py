"""From the rounds of one artifact in one runtime to a row of the report, VALID or INVALID with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import proc, statistics

MIN_CALLS = 100  # below, a p99 is the slowest call and nothing else
MIN_ROUNDS = 5  # below, Student's interval is too wide to be of use
MAX_OVERHEAD = 0.05  # the harness's own time over p50
MAX_SPREAD = 0.10  # between the quartiles of the rounds' p50, over their median

Row = dict[str, Any]

FIGURES = (
    *("score", "agreement", "agreement_onnx", "kl", "p50_ms", "p90_ms", "p99_ms", "cold_ms", "load_ms"),
    *("throughput_per_s", "peak_rss_mib", "import_rss_mib", "speedup_vs_teacher", "speedup_low", "speedup_high"),
)


@dataclass(frozen=True)
class Cell:
    """What is compared within: ratios are taken between artifacts of one cell."""

    runtime: str
    threads: int
    workload: str


def summary(answer: dict[str, Any], samples: Path) -> dict[str, Any]:
    """One round's figures: what the child answered, and the percentiles of its calls in milliseconds."""
    with np.load(samples, allow_pickle=False) as file:
        call_ms, null_ms = file["call_ns"] / 1e6, file["null_ns"] / 1e6
    p50, p90, p99 = (float(value) for value in np.percentile(call_ms, [50, 90, 99]))
    return {
        **answer,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "null_ms": float(np.median(null_ms)),
        "throughput_per_s": 1000 / float(call_ms.mean()),
    }


def empty(name: str, cell: Cell, size_bytes: int | None, reason: str) -> Row:
    """The row of what was not measured, or failed: no figures, and why."""
    return {
        "artifact": name,
        "runtime": cell.runtime,
        "threads": cell.threads,
        "workload": cell.workload,
        **dict.fromkeys(FIGURES),
        "size_mib": None if size_bytes is None else size_bytes / 2**20,
        "size_bytes": size_bytes,
        "calls": 0,
        "rounds": 0,
        "round_p50_ms": [],
        "valid": False,
        "why_invalid": reason,
    }


def measured(
    name: str, cell: Cell, size_bytes: int, calls: int, rounds: Sequence[dict[str, Any]], int8: Set[str] = frozenset()
) -> Row:
    """The row of ``rounds`` (see ``summary``), without ratio and scores; ``int8``: the nodes that the graph has so.

    Every time is the median over rounds of the round's own figure; the memory peak is the highest.
    """
    middle = {
        key: median(found[key] for found in rounds)
        for key in ("p50_ms", "p90_ms", "p99_ms", "cold_ms", "load_ms", "throughput_per_s", "import_rss_mib")
    }
    reason = "; ".join(filter(None, (fallback(int8, rounds[0]), why_invalid(cell, calls, rounds)))) or None
    return {
        **empty(name, cell, size_bytes, ""),
        **middle,
        "peak_rss_mib": max(found["peak_rss_mib"] for found in rounds),
        "calls": calls,
        "rounds": len(rounds),
        "round_p50_ms": [found["p50_ms"] for found in rounds],
        "overhead_share": median(found["null_ms"] / found["p50_ms"] for found in rounds),
        "stolen_share": median(found["stolen"] for found in rounds),
        "neighbours_share": median(found["neighbours"] for found in rounds),
        **{key: rounds[0][key] for key in ("version", "executed") if key in rounds[0]},
        "busy_threads": max(found["busy_threads"] for found in rounds),
        "valid": reason is None,
        "why_invalid": reason,
    }


def fallback(int8: Set[str], found: Mapping[str, Any]) -> str | None:
    """What of the graph's ``int8`` nodes the runtime says that it did in float, which nobody asked for."""
    lost = sorted(int8 & {*found.get("executed", {}).get("float", ())})
    return f"{lost[0]} ({len(lost)} in all) is int8 in the graph and ran in float" if lost else None


def why_invalid(cell: Cell, calls: int, rounds: Sequence[dict[str, Any]]) -> str | None:
    """The reasons for which these rounds are no measurement, or ``None``. One disturbed round in five is borne."""
    borne = len(rounds) // 5
    reasons = []
    if calls < MIN_CALLS:
        reasons.append(f"{calls} calls a round, {MIN_CALLS} needed")
    if len(rounds) < MIN_ROUNDS:
        reasons.append(f"{len(rounds)} rounds, {MIN_ROUNDS} needed for an interval")
    overhead = median(found["null_ms"] / found["p50_ms"] for found in rounds)
    if overhead > MAX_OVERHEAD:
        reasons.append(f"the harness itself takes {overhead:.0%} of p50, at most {MAX_OVERHEAD:.0%} allowed")
    disturbed = [found["stolen"] for found in rounds if found["stolen"] > proc.MAX_STOLEN]
    if len(disturbed) > borne:
        share = f"{median(disturbed):.0%} of the CPU time in {len(disturbed)} of {len(rounds)} rounds"
        reasons.append(f"other processes took {share}; measure on an idle machine")
    beside = [found["neighbours"] for found in rounds if found["neighbours"] > proc.MAX_NEIGHBOURS]
    if len(beside) > borne:
        share = f"{median(beside):.0%} of the machine's CPUs in {len(beside)} of {len(rounds)} rounds"
        reasons.append(f"other processes kept busy {share}; measure on an idle machine")
    unsettled = sum(not found["settled"] for found in rounds)
    if unsettled > borne:
        reasons.append(f"still getting faster after the longest warm-up in {unsettled} of {len(rounds)} rounds")
    busy = max(found["busy_threads"] for found in rounds)
    if busy > cell.threads:
        reasons.append(f"{busy} threads worked, {cell.threads} asked for")
    spread = statistics.spread([found["p50_ms"] for found in rounds])
    if spread > MAX_SPREAD:
        reasons.append(f"the quartiles of the rounds' p50 lie {spread:.0%} apart, at most {MAX_SPREAD:.0%} allowed")
    return "; ".join(reasons) or None


def compare(rows: list[Row], baseline: str) -> None:
    """Fill in every row's speed-up against the ``baseline`` artifact of its cell.

    A row whose baseline is INVALID becomes so too, since its ratio is; one whose baseline was not measured has no
    ratio.
    """
    teachers = {_cell(row): row for row in rows if row["artifact"] == baseline and row["round_p50_ms"]}
    for row in rows:
        teacher = teachers.get(_cell(row))
        if teacher is None or not row["round_p50_ms"] or len(teacher["round_p50_ms"]) != len(row["round_p50_ms"]):
            continue
        ratio = statistics.speedup(teacher["round_p50_ms"], row["round_p50_ms"])
        row.update(speedup_vs_teacher=ratio.value, speedup_low=ratio.low, speedup_high=ratio.high)
        if row["valid"] and not teacher["valid"]:
            row.update(valid=False, why_invalid=f"{baseline} is INVALID: {teacher['why_invalid']}")


def add_scores(
    rows: list[Row],
    logits: dict[tuple[str, str, int], NDArray[np.float32]],
    labels: dict[str, NDArray[np.int64]],
    reference: tuple[str, str],
    score: Callable[[NDArray[np.float32], NDArray[np.int64]], float],
) -> None:
    """Fill in score, agreements and KL from ``logits`` by (artifact, runtime, threads).

    ``reference`` names the artifact and the runtime that ``agreement`` and ``kl`` compare with; ``agreement_onnx``
    compares with the same artifact in that runtime, and is ``None`` for that itself.

    They are the file's in its runtime, whatever was timed: rows of every workload have them, by preference from as many
    threads. A row that was not measured has none, nor has one whose runtime left no logits of the file.
    """
    first = {key[:2]: found for key, found in reversed(logits.items())}
    teacher = first.get(reference)
    for row in rows:
        mine = [key for key in logits if key[:2] == (row["artifact"], row["runtime"]) and row["round_p50_ms"]]
        if not mine:
            continue
        key = min(mine, key=lambda key: key[2] != row["threads"])
        found, onnx = logits[key], first.get((row["artifact"], reference[1]))
        row["score"] = score(found, labels[row["artifact"]])
        if not np.isfinite(found).all():
            reasons = ["some logits are not finite", row["why_invalid"]]
            row.update(valid=False, why_invalid="; ".join(filter(None, reasons)))
            continue
        if teacher is not None and teacher.shape == found.shape:
            row.update(agreement=statistics.agreement(teacher, found), kl=statistics.kl(teacher, found))
        if onnx is not None and onnx is not found and onnx.shape == found.shape:
            row["agreement_onnx"] = statistics.agreement(onnx, found)


def _cell(row: Row) -> Cell:
    return Cell(row["runtime"], row["threads"], row["workload"])
