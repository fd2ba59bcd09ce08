"""What of a file a runtime does in int8, and what in float."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.report import figures, verdicts

Row = Mapping[str, Any]

KINDS = ("int8", "4-bit weights", "float")
AUDITED = ("ort_cpu", "ort_mobile")
"""The runtimes whose optimized graph the export stage has audited."""


def executed(report: Mapping[str, Any], row: Row) -> dict[str, list[str]]:
    """Kind -> names of the multiplications, or weights, of a row's file; empty where nobody knows.

    The runtime's own word counts first, then its converter's, then the audit of onnxruntime's graph.
    """
    runtime, name = row["runtime"], row["artifact"]
    told = row.get("executed") or report["conversions"].get(runtime, {}).get(name, {})
    if not told and runtime in AUDITED:
        every = report["audit"].get(name, {})
        listed = every.get("multiplications", ()) if isinstance(every, dict) else ()
        told = {kind: [found["node"] for found in listed if found["kind"] == kind] for kind in KINDS}
    return {kind: list(told[kind]) for kind in KINDS if told.get(kind)}


def more(report: Mapping[str, Any], row: Row) -> list[tuple[str, str]]:
    """What else the converter says of a row's file, in its own words: ``("delegated share", "1.00")``."""
    told = report["conversions"].get(row["runtime"], {}).get(row["artifact"], {})
    plain = {key: value for key, value in told.items() if key != "error" and isinstance(value, (int, float, str))}
    return [
        (key.replace("_", " "), value if isinstance(value, str) else figures.number(value))
        for key, value in plain.items()
    ]


def brief(names: Sequence[str]) -> list[str]:
    """Names that differ by the number of their layer alone as one: ``layer.*.attention.self.MatMul × 4``."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return [alike[0] if len(alike) == 1 else f"{name} × {len(alike)}" for name, alike in found.items()]


def lost(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each runtime that does fewer multiplications of the shipped file in int8 than it holds."""
    held = report["audit"].get(verdicts.SHIPPED, {})
    whole, found = held.get("int8", 0) if isinstance(held, dict) else 0, []
    for place, part in figures.by_runtime(report["rows"]).items():
        row = next((row for row in part if row["artifact"] == verdicts.SHIPPED), None)
        kinds = executed(report, row) if row else {}
        missing = whole - len(kinds.get("int8", ())) if kinds else 0
        if missing > 0:
            found.append(
                f"{place} does {missing} of the {whole} multiplications that are int8 in the shipped file in float."
            )
    return found
