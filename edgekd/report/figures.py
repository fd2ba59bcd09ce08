"""What the artifacts and figures of a report are called, and how a figure is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from edgekd import spec

Row = Mapping[str, Any]

ARTIFACTS = {
    "teacher_fp32": "teacher fp32",
    "teacher_ort_dynamic": "teacher, ORT dynamic int8",
    "student_fp32": "student fp32",
    "student_ptq": "student, best PTQ int8",
    "student_qad": "student, shipped int8",
}
"""Artifact -> its name for people, in the order of every table. ``student_qad`` is what ships, trained under
quantization (QAD) where ``trained`` says so. See ``artifact``."""

RUNTIMES = {
    "ort_cpu": "onnxruntime",
    "ort_mobile": "onnxruntime mobile (.ort)",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
    "executorch": "ExecuTorch",
}

KINDS = ("embedding", "linear", "norm", "other", "graph")

TENSOR_HEAD = ("Tensor of the shipped file", "Kind", "Type", "Shape", "KiB", "Read by")
LARGEST = 8
"""How many tensors are listed."""


class Figure(NamedTuple):
    """One column: its key in a row, its heading, its unit, and which way is better."""

    key: str
    title: str
    unit: str
    better: int  # 1: more is better, -1: less is better, 0: neither


FIGURES = (
    Figure("score", "Score", "%", 1),
    Figure("agreement", "Agreement", "%", 1),
    Figure("kl", "KL", "nats", -1),
    Figure("p50_ms", "p50", "ms", -1),
    Figure("p90_ms", "p90", "ms", -1),
    Figure("p99_ms", "p99", "ms", -1),
    Figure("speedup_vs_teacher", "Speed-up", "x", 1),
    Figure("size_mib", "Size", "MiB", -1),
    Figure("peak_rss_mib", "Peak RSS", "MiB", -1),
    Figure("cold_ms", "Cold call", "ms", -1),
    Figure("load_ms", "Load", "ms", -1),
    Figure("throughput_per_s", "Throughput", "/s", 1),
)
"""The columns of the rows table."""

ANSWERS = ("score", "agreement", "kl")
"""What a file answers on the test split: the same for every workload, so it is told at real lengths alone."""


ISA_HEAD = ("Instruction set", "CPU", "Same labels", "Score", "Score here", "Largest logit difference")
ISA_ABOUT = (
    "The shipped file on a sample of the test split, in onnxruntime, one example a call, against the same on the CPU "
    "where it was verified. Emulation tells answers, not times."
)


def isa_row(row: Row) -> tuple[str, ...]:
    """The cells under ``ISA_HEAD``."""
    by = f", emulated by {row['emulator']} {row['emulator_version']}" if row["emulator"] else ""
    here = f"{percent(row['native_score'])} on {row['native_cpu']} ({row['native_isa'] or 'other'})"
    same = f"{row['same_labels']:,} of {row['examples']:,}"
    return row["isa"], row["cpu"] + by, same, percent(row["score"]), here, number(row["max_logit_difference"])


def trained(quantize: Mapping[str, Any]) -> bool:
    """Whether training under quantization made what ships, by a report's ``training.quantize``; else PTQ did."""
    return bool(quantize.get("trained", True)) and (quantize.get("best") or {}).get("step") != 0


def precision(report: Mapping[str, Any]) -> str:
    """What the report's quantized students are called: ``int8`` or ``4-bit``."""
    return spec.precision(((report.get("training") or {}).get("quantize") or {}).get("scheme"))


def artifact(name: str, precision: str = "int8") -> str:
    """The artifact's name for people, a quantized student's with its ``precision``; an unknown one as it is."""
    title = ARTIFACTS.get(name, name)
    return title.replace("int8", precision) if name.startswith("student") else title


def runtime(name: str) -> str:
    """The runtime's name for people; an unknown one as it is."""
    return RUNTIMES.get(name, name)


def workload(name: str) -> str:
    """``real`` -> ``real lengths``, ``fixed64`` -> ``64 tokens``."""
    if name == "real":
        return "real lengths"
    return f"{name[5:]} tokens" if name.startswith("fixed") and name[5:].isdigit() else name


def where(row: Row) -> str:
    """What a row was measured under: ``onnxruntime, 1 thread, real lengths``."""
    threads = row["threads"]
    return f"{runtime(row['runtime'])}, {threads} thread{'' if threads == 1 else 's'}, {workload(row['workload'])}"


def key(row: Row) -> tuple[str, str, int, str]:
    """What tells a row from every other one of its report: artifact, runtime, threads, workload."""
    return row["artifact"], row["runtime"], row["threads"], row["workload"]


def find(rows: Iterable[Row], artifact: str, like: Row) -> Row | None:
    """The row of ``artifact`` under the conditions (runtime, threads, workload) of ``like``, valid or not."""
    return next((r for r in rows if key(r) == (artifact, like["runtime"], like["threads"], like["workload"])), None)


def groups(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Rows by what they were measured under, in order of first appearance; artifacts in ``ARTIFACTS``' order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(where(row), []).append(row)
    order = list(ARTIFACTS)
    rank = {name: i for i, name in enumerate(order)}
    return [(name, sorted(part, key=lambda r: rank.get(r["artifact"], len(order)))) for name, part in found.items()]


def reasons(rows: Iterable[Row], precision: str) -> dict[str, list[str]]:
    """Why rows are INVALID -> which rows, by artifact and condition."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if not row["valid"]:
            found.setdefault(row["why_invalid"], []).append(f"{artifact(row['artifact'], precision)}, {where(row)}")
    return found


def beside(teacher: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The co-teachers: locator and scores by split."""
    return list(zip(teacher.get("also", ()), teacher.get("also_scores", ()), strict=False))


def percent(share: float | None, digits: int = 2) -> str:
    """``0.9717`` -> ``97.17 %``; None -> a dash."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(share: float, digits: int = 2) -> str:
    """A difference of two shares in percentage points, signed: ``+0.05``."""
    text = f"{100 * share:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else f"{0:.{digits}f}"


def number(value: float | None) -> str:
    """Three significant digits, never in powers of ten: 0.0123, 1.23, 12.3, 1,234; None -> a dash."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    if size >= 0.0995:
        return f"{value:.3f}"
    return f"{value:.{min(7, 2 - math.floor(math.log10(size)))}f}" if size else "0"


def plain(value: float | None) -> str:
    """A count, or what may be a fraction of one: 1,234 and 2.5; None -> a dash."""
    return "–" if value is None else f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"


def ratio(value: float | None) -> str:
    """``14.2×``; None -> a dash."""
    return "–" if value is None else f"{number(value)}×"


def span(low: float | None, high: float | None) -> str:
    """``13.8 to 14.6``, or nothing without an interval."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def value(row: Row, figure: Figure) -> Any:
    """A row's figure; None where it has none, or where another row of the same file tells it (``ANSWERS``)."""
    return None if figure.key in ANSWERS and row["workload"] != "real" else row.get(figure.key)


def cell(row: Row, figure: Figure) -> str:
    """A row's figure as text, without its unit (the heading has it) except for shares and ratios."""
    found = value(row, figure)
    if figure.unit == "%":
        return percent(found)
    return ratio(found) if figure.unit == "x" else number(found)


def heading(figure: Figure) -> str:
    """``p50 (ms)``; shares and ratios carry their unit in the cells."""
    return figure.title if figure.unit in "%x" else f"{figure.title} ({figure.unit})"


def amount(value: float | None, unit: str) -> str:
    """A figure with its unit: ``1.23 ms``, ``99.6 %``, ``14.2×``."""
    if value is None:
        return "not measured"
    if unit == "%":
        return percent(value)
    return ratio(value) if unit == "x" else f"{number(value)} {unit}".rstrip()


def by_kind(sizes: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, dict[str, int]]:
    """Artifact -> kind of tensor -> bytes, artifacts in ``ARTIFACTS``' order."""
    found: dict[str, dict[str, int]] = {}
    for name in sorted(sizes, key=lambda name: (list(ARTIFACTS).index(name) if name in ARTIFACTS else 99, name)):
        total = found.setdefault(name, {})
        for tensor in sizes[name]:
            total[tensor["kind"]] = total.get(tensor["kind"], 0) + tensor["bytes"]
    return found


def largest(sizes: Mapping[str, Iterable[Row]]) -> list[tuple[str, ...]]:
    """The cells under ``TENSOR_HEAD`` of what takes most in the shipped file."""
    stored = [row for row in sizes.get("student_qad", ()) if row["kind"] != "graph"]
    return [
        (row["tensor"], row["kind"], row["dtype"] or "–", " × ".join(map(str, row["shape"] or ())))
        + (number(row["bytes"] / 1024), plain(row.get("users")))
        for row in sorted(stored, key=lambda row: -row["bytes"])[:LARGEST]
    ]


def kinds(sizes: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """The kinds of tensor that any artifact has, in ``KINDS``' order."""
    seen = {kind for found in by_kind(sizes).values() for kind in found}
    return [kind for kind in KINDS if kind in seen]
