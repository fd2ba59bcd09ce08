"""What the artifacts and figures of a report are called, and how a figure is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
    "openvino_bf16": "OpenVINO in bf16",
    "litert": "LiteRT",
    "ort_web": "onnxruntime-web (Node)",
    "ort_web_chromium": "onnxruntime-web (Chromium)",
    "executorch": "ExecuTorch",
    "mnn": "MNN",
    "ncnn": "ncnn",
}

CONDITION = ("runtime", "threads", "workload", "host", "measured_on")
"""What a row was measured under; rows of one condition are compared."""

PROXY = "host-proxy"
"""How a figure is marked that was not taken on the device it is for (a row's ``measured_on``; else ``device``)."""


class Figure(NamedTuple):
    """One column: its key in a row, its heading, its unit, and which way is better."""

    key: str
    title: str
    unit: str
    better: int  # 1: more is better, -1: less is better, 0: neither


FIGURES = (
    Figure("score", "Score", "%", 1),
    Figure("agreement", "Agreement", "%", 1),
    Figure("agreement_onnx", "As .onnx", "%", 1),
    Figure("kl", "KL", "nats", -1),
    Figure("p50_ms", "p50", "ms", -1),
    Figure("p90_ms", "p90", "ms", -1),
    Figure("p99_ms", "p99", "ms", -1),
    Figure("speedup_vs_teacher", "Speed-up", "x", 1),
    Figure("size_mib", "Size", "MiB", -1),
    Figure("peak_rss_mib", "Peak RSS", "MiB", -1),
    Figure("import_rss_mib", "Runtime RSS", "MiB", 0),
    Figure("cold_ms", "Cold call", "ms", -1),
    Figure("load_ms", "Load", "ms", -1),
    Figure("throughput_per_s", "Throughput", "/s", 1),
)
"""The columns of the rows table."""

ANSWERS = ("score", "agreement", "agreement_onnx", "kl")
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


def device(row: Row) -> str | None:
    """The device that measured a row (its ``host``), where that is not the run's own machine."""
    return row.get("host")


def place(row: Row) -> str:
    """The runtime of a row, and the device it ran on where that is another: ``LiteRT on Pixel 8``."""
    return runtime(row["runtime"]) + (f" on {device(row)}" if device(row) else "")


def version(row: Row) -> str | None:
    """The version of a row's runtime, without the name of its build."""
    return (row.get("version") or "").partition("-")[0] or None


def state(row: Row) -> str:
    """What a row is: ``valid``; ``INVALID``, with figures not to be used; ``failed`` or ``skipped``, without any."""
    if row["valid"] or row["rounds"]:
        return "valid" if row["valid"] else "INVALID"
    return "skipped" if row["why_invalid"].startswith("skipped: ") else "failed"


def caveats(row: Row) -> list[str]:
    """What stands beside a row's figures: what they are not. The reason of an INVALID row stands in it."""
    return [PROXY] if row["rounds"] and row.get("measured_on") == PROXY else []


def workload(name: str) -> str:
    """``real`` -> ``real lengths``, ``fixed64`` -> ``64 tokens``."""
    if name == "real":
        return "real lengths"
    return f"{name[5:]} tokens" if name.startswith("fixed") and name[5:].isdigit() else name


def where(row: Row) -> str:
    """What a row was measured under: ``onnxruntime, 1 thread, real lengths``; a stand-in's is marked ``PROXY``."""
    return f"{place(row)}, {condition(row)}" + (f", {PROXY}" if row.get("measured_on") == PROXY else "")


def condition(row: Row) -> str:
    """What a row shares with those of other runtimes: ``1 thread, real lengths``."""
    threads = row["threads"]
    return f"{threads} thread{'' if threads == 1 else 's'}, {workload(row['workload'])}"


def key(row: Row) -> tuple[str, str, int, str, str | None]:
    """What tells a row from every other one of its report: artifact, runtime, threads, workload, device."""
    return row["artifact"], row["runtime"], row["threads"], row["workload"], device(row)


def find(rows: Iterable[Row], artifact: str, like: Row) -> Row | None:
    """The row of ``artifact`` under the conditions (runtime, threads, workload, device) of ``like``, valid or not."""
    wanted = key({**like, "artifact": artifact})
    return next((row for row in rows if key(row) == wanted), None)


def groups(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Rows by threads and workload, all runtimes together, in order of first appearance; a title for each.

    Within a group they stand by runtime, and then in ``ARTIFACTS``' order.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(condition(row), {}).setdefault(place(row), []).append(row)
    order = list(ARTIFACTS)
    rank = {name: i for i, name in enumerate(order)}
    return [
        (
            _title(name, [row for part in parts.values() for row in part]),
            [row for part in parts.values() for row in sorted(part, key=lambda r: rank.get(r["artifact"], len(order)))],
        )
        for name, parts in found.items()
    ]


def _title(name: str, rows: Sequence[Row]) -> str:
    alone = len(set(map(place, rows))) == 1
    proxy = f", {PROXY}" if all(row.get("measured_on") == PROXY for row in rows) else ""
    return where(rows[0]) if alone else name + proxy


def by_runtime(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """``place`` -> its rows under its main condition: one thread and real lengths, or else what comes first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(place(row), []).append(row)
    main = {}
    for name, part in found.items():
        like = next((row for row in part if (row["threads"], row["workload"]) == (1, "real")), part[0])
        main[name] = groups(row for row in part if condition(row) == condition(like))[0][1]
    return main


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
    return f"{value:.{min(7, 2 - math.floor(math.log10(size)))}f}" if size >= 5e-8 else "0"


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
