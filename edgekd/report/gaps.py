"""Rows without figures, or with none to be used: each reason is told once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekd.report import figures

Row = Mapping[str, Any]


def merged(rows: Sequence[Row]) -> list[Row]:
    """Rows, where those of one condition that all lack figures for one reason are one, of ``all N artifacts``."""
    found: list[Row] = []
    for name in dict.fromkeys(map(figures.where, rows)):
        part = [row for row in rows if figures.where(row) == name]
        alike = len({row["why_invalid"] for row in part}) == 1 and figures.state(part[0]) in ("failed", "skipped")
        one = {**part[0], "artifact": f"all {len(part)} artifacts", "size_mib": None, "size_bytes": None}
        found += [one] if alike and len(part) > 1 else part
    return found


def reasons(rows: Iterable[Row], precision: str) -> dict[str, list[str]]:
    """Why rows have no figures, or none to be used -> which rows, by artifact and condition."""
    table = list(rows)
    every = Counter(map(figures.where, table))
    found: dict[str, dict[str, list[str]]] = {}
    for row in table:
        if not row["valid"]:
            found.setdefault(row["why_invalid"], {}).setdefault(figures.where(row), []).append(row["artifact"])
    told: dict[str, list[str]] = {}
    for why, places in found.items():
        for there, names in places.items():
            each = [f"{figures.artifact(name, precision)}, {there}" for name in names]
            told.setdefault(why, []).extend([there] if 1 < every[there] == len(names) else each)
    return told
