"""What the bytes of each artifact are, as the tables and the chart tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgekd.report import figures

Row = Mapping[str, Any]

KINDS = ("embedding", "linear", "norm", "other", "graph")

HEAD = ("Tensor of the shipped file", "Kind", "Type", "Shape", "KiB", "Read by")
LARGEST = 8
"""How many tensors are listed."""


def by_kind(sizes: Mapping[str, Iterable[Row]]) -> dict[str, dict[str, int]]:
    """Artifact -> kind of tensor -> bytes, artifacts in the order of every table."""
    order = list(figures.ARTIFACTS)
    found: dict[str, dict[str, int]] = {}
    for name in sorted(sizes, key=lambda name: (order.index(name) if name in order else len(order), name)):
        total = found.setdefault(name, {})
        for tensor in sizes[name]:
            total[tensor["kind"]] = total.get(tensor["kind"], 0) + tensor["bytes"]
    return found


def largest(sizes: Mapping[str, Iterable[Row]]) -> list[tuple[str, ...]]:
    """The cells under ``HEAD`` of what takes most in the shipped file."""
    stored = [row for row in sizes.get("student_qad", ()) if row["kind"] != "graph"]
    return [
        (row["tensor"], row["kind"], row["dtype"] or "–", " × ".join(map(str, row["shape"] or ())))
        + (figures.number(row["bytes"] / 1024), figures.plain(row.get("users")))
        for row in sorted(stored, key=lambda row: -row["bytes"])[:LARGEST]
    ]


def kinds(sizes: Mapping[str, Iterable[Row]]) -> list[str]:
    """The kinds of tensor that any artifact has, in ``KINDS``' order."""
    seen = {kind for found in by_kind(sizes).values() for kind in found}
    return [kind for kind in KINDS if kind in seen]
