"""From measured rows to a choice: the fastest that is surely faster, within the score budget. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edgekd.bench.statistics import Ratio, speedup, verdict

Row = Mapping[str, Any]

SLACK = 0.005
"""Without a budget, so much below the best candidate's score (a share) is as good."""


def least_score(rows: Sequence[Row], kept: float | None, teacher: float) -> float:
    """The score that a candidate needs: ``kept`` times the teacher's, or within ``SLACK`` of the best row's."""
    if kept is not None:
        return kept * teacher
    return max((row["score"] for row in rows if row["score"] is not None), default=0.0) - SLACK


def outcome(row: Row, least: float) -> str:
    """``faster``, ``same``, ``slower`` or ``unknown`` than the baseline of its ratio; ``INVALID``; ``score``: beyond
    the budget, however fast.
    """
    if not row["valid"]:
        return "INVALID"
    if row["score"] is None or row["score"] < least:
        return "score"
    return verdict(row["speedup_low"], row["speedup_high"])


def choose(rows: Sequence[Row], own: str, choosable: Collection[str], least: float) -> str:
    """The artifact to use: ``own``, unless one of ``choosable`` is surely faster with a score of at least ``least``.

    ``rows`` are those of ``bench.measure`` with ``own`` as the baseline. Of several, the one with the highest ratio.
    """
    better = winners(rows, own, choosable, least)
    return better[0] if better else own


def winners(rows: Sequence[Row], own: str, choosable: Collection[str], least: float) -> list[str]:
    """Every one of ``choosable`` that ``choose`` could take, the fastest first."""
    found = [row for row in rows if row["artifact"] in choosable and row["artifact"] != own]
    found = [row for row in found if outcome(row, least) == "faster"]
    return [row["artifact"] for row in sorted(found, key=lambda row: -row["speedup_vs_teacher"])]


def p50(row: Row) -> Ratio | None:
    """The median time of a call in milliseconds, with the 95% interval over the rounds; ``None`` if not measured."""
    times = row["round_p50_ms"]
    return speedup(times, [1.0] * len(times)) if times else None
