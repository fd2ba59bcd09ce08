"""Which of the student's files to ship for each runtime, by one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.report import figures, verdicts
from edgekd.spec import Budget

Row = Mapping[str, Any]

RULE = (
    "Of the student's files that are VALID in a runtime and keep the score and the size that the budget asks for, the "
    "one the run ships, unless another is faster there by more than noise: then the fastest. At real lengths and on "
    "one thread, where that was measured."
)


def choices(
    budget: Budget, rows: Sequence[Row], runtime: str, precision: str = "int8", black_box: Row | None = None
) -> list[dict[str, Any]]:
    """What to ship in every runtime of ``rows``, by ``RULE``; the arguments are those of ``verdicts.budget_lines``.

    ``artifact`` is None where nothing keeps what is asked; ``why`` says what decided; ``refused`` why an artifact was
    no choice. Scores and sizes are held against the teacher in ``runtime``, as the budget's are.
    """
    like = {"runtime": runtime, "threads": 1, "workload": "real"}
    teacher = black_box or figures.find(rows, "teacher_fp32", like) or {}
    found = []
    for part in figures.by_runtime(rows).values():
        students = {row["artifact"]: row for row in part if row["artifact"].startswith("student")}
        refused = {name: why for name, row in students.items() if (why := _objection(row, teacher, budget))}
        kept = {name: row for name, row in students.items() if name not in refused}
        artifact = _pick(kept)
        place = {name: part[0].get(name) for name in figures.CONDITION}
        why = _why(artifact, students, refused, precision)
        found.append({**place, "artifact": artifact, "why": why, "refused": refused})
    return found


def _objection(row: Row, teacher: Row, budget: Budget) -> str | None:
    """Why a file is no choice, if so."""
    if not row["valid"]:
        return f"INVALID: {row['why_invalid']}" if figures.state(row) == "INVALID" else str(row["why_invalid"])
    share = row["score"] / teacher["score"] if row["score"] is not None and teacher.get("score") else None
    times = teacher["size_bytes"] / row["size_bytes"] if row["size_bytes"] and teacher.get("size_bytes") else None
    asked: tuple[tuple[float | None, float | None, bool, str, str], ...] = (
        (share, budget.score_kept, False, "%", " of the teacher's score"),
        (row["size_mib"], budget.size_mib, True, "MiB", ""),
        (times, budget.shrink, False, "x", " smaller than the teacher"),
    )
    for value, limit, most, unit, what in asked:
        if value is not None and limit is not None and (value > limit if most else value < limit):
            words = figures.amount(value, unit), f"at {'most' if most else 'least'} {figures.amount(limit, unit)}"
            return f"{words[0]}{what}, {words[1]} asked"
    return None


def _pick(kept: Mapping[str, Row]) -> str | None:
    """The shipped one, or the fastest; or else the fastest of those that are surely faster."""
    if not kept:
        return None
    fastest = sorted(kept, key=lambda name: float(kept[name]["p50_ms"]))
    first = verdicts.SHIPPED if verdicts.SHIPPED in kept else fastest[0]
    return next((name for name in fastest if _race(kept[first], kept[name])["verdict"] == "faster"), first)


def _race(base: Row, other: Row) -> dict[str, Any]:
    return verdicts.race([base, other], base["artifact"], other["artifact"])[0]


def _why(artifact: str | None, students: Mapping[str, Row], refused: Mapping[str, str], precision: str) -> str:
    if artifact is None:
        said = [f"{figures.artifact(name, precision)}: {why}" for name, why in refused.items()]
        return "; ".join(said if len(set(refused.values())) > 1 else set(refused.values())) or "no student was measured"
    over = "student_fp32" if artifact == verdicts.SHIPPED else verdicts.SHIPPED
    name = figures.artifact(over, precision)
    if over not in students:
        return f"the {name} was not measured there"
    line = _race(students[over], students[artifact])
    span = figures.span(line["low"], line["high"])
    speed = f"{figures.ratio(line['ratio'])} as fast as the {name}" + (f" (95%: {span})" if span else "")
    if over not in refused:
        return speed
    return (f"{speed}, which" if line["ratio"] else f"the {name}") + f" is no choice: {refused[over]}"
