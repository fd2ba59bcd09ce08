"""Phones, which have no Python: the ``adb`` commands that a bundle's card gives, and the text that they print.

The text says of itself what was run: a line ``edgekd model=<SHA-256> export=<key>``, lines ``device``, ``android`` and
``abi``, the CPU's ``Features`` as Linux tells them, and before every run of a tool a line ``round runtime=...
threads=... workload=...``. What follows it is the output of onnxruntime_perf_test or of LiteRT's benchmark_model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from edgekd.bench import rows, statistics
from edgekd.bench.rows import Cell
from edgekd.errors import DataError

FOLDER = "/data/local/tmp/edgekd"
TEST_DATA = "android/test_data_set_0"
ROUNDS, CALLS = 5, 1000

TOOLS = {"ort_cpu": "onnxruntime_perf_test", "ort_mobile": "onnxruntime_perf_test", "litert": "benchmark_model"}
"""Runtime -> the tool whose output is read."""

SHORTEST = 16
"""A ``.tflite`` has signatures for so many tokens and more (``graph.lengths``); what is shorter is padded."""

LEAST, MOST = 1e-9, 1e9
"""Of a figure as it is printed: what is computed of such figures is finite."""

AGAIN = "run the commands of the bundle's README.md as they are"

ISAS = {"arm64-v8a": "aarch64", "armeabi-v7a": "armv7l"}


def serves(device: Mapping[str, Any]) -> bool:
    """Whether a report's ``device`` may be such a phone: 64-bit ARM, and of no other system that is known."""
    return device["isa"] == "aarch64" and device.get("system") in (None, "android")


def tokens(report: Mapping[str, Any]) -> int:
    """How many tokens the input has that a phone is measured with."""
    longest = int(report["task"]["max_length"])
    return next((length for length in (64, 32, 16) if length <= longest), longest)


def commands(report: Mapping[str, Any], manifest: Mapping[str, Any], model: str) -> str:
    """A shell script for the bundle's folder: copies, measures in turns, and leaves ``phone.txt`` beside that folder.

    ``model`` is the SHA-256 of the bundle's ``.onnx``; ``manifest`` needs no ``files``.
    """
    files = {"ort_cpu": manifest["model"], **manifest["runtimes"]}
    export, length, inputs = report["stages"]["export"]["key"], tokens(report), len(manifest["inputs"])
    names = {runtime: f"{runtime}.{file.rpartition('.')[2]}" for runtime, file in files.items() if runtime in TOOLS}
    padded = max(SHORTEST, length)
    layers = [f"in{number}" for number in range(inputs)]  # names of ours: the tool takes them in the graph's order
    run_of = {
        "onnxruntime_perf_test": f"-e cpu -m times -r {CALLS} -x 1 -y 1 -s {{}}",
        "benchmark_model": "--graph={} --num_threads=1 --use_xnnpack=true --warmup_runs=50 "
        f"--num_runs={CALLS} --signature_to_run_for=tokens_{padded} --input_layer={','.join(layers)} "
        f"--input_layer_shape={':'.join([f'1,{padded}'] * inputs)} "
        f"--input_layer_value_range={':'.join(f'{name},0,1' for name in layers)}",  # in reach of every table
    }
    lines = [f"adb shell mkdir -p {FOLDER}"]
    lines += [f"adb push {files[runtime]} {FOLDER}/{name}" for runtime, name in names.items()]
    lines += [f"adb push {TEST_DATA} {FOLDER}/"]
    for tool in dict.fromkeys(TOOLS[runtime] for runtime in names):
        lines += [f"adb push ../{tool} {FOLDER}/", f"adb shell chmod +x {FOLDER}/{tool}"]
    lines += ["{", f"  echo edgekd model={model} export={export}"]
    for word, prop in (("device", "model"), ("android", "build.version.release"), ("abi", "product.cpu.abi")):
        prop = f"ro.product.{prop}" if word == "device" else f"ro.{prop}"
        lines.append(f'  echo "{word} $(adb shell getprop {prop})"')
    lines += ["  adb shell grep -m1 Features /proc/cpuinfo", f"  for round in $(seq {ROUNDS}); do"]
    for runtime, name in names.items():
        timed = padded if TOOLS[runtime] == "benchmark_model" else length
        lines.append(f"    echo round runtime={runtime} threads=1 workload=fixed{timed}")
        lines.append(f'    adb shell "cd {FOLDER} && ./{TOOLS[runtime]} {run_of[TOOLS[runtime]].format(name)} 2>&1"')
    lines += ["  done", "} | tee ../phone.txt", f"adb shell rm -r {FOLDER}"]
    lines += [f"# then, where runs/ is: edgekd report {report['run']} --import .../phone.txt"]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- reading


def parse(text: str) -> dict[str, Any]:
    """``{"model", "export", "device", "android", "isa", "flags", "rounds": {Cell: [figures]}}`` of such a text.

    The figures of a round are ``p50_ms``, ``p90_ms``, ``p99_ms``, ``load_ms``, ``cold_ms``, ``throughput_per_s``
    (``None`` where the tool does not tell) and ``calls``. Raises ``DataError``, naming the line, where something is
    missing or is not what the tools print.
    """
    lines = [line.strip() for line in text.splitlines()]
    starts = [number for number, line in enumerate(lines) if line.startswith("round ")]
    head = lines[: starts[0]] if starts else lines
    identity = _one(head, r"edgekd model=([0-9a-f]{64}) export=([0-9a-f]{16})", "edgekd model=... export=...")
    found: dict[str, Any] = {"model": identity[1], "export": identity[2]}
    found["device"] = _one(head, r"device (\S.{0,99})", "device ...")[1]
    abi = _word(head, "abi")
    found |= {"android": _word(head, "android"), "isa": ISAS.get(abi, abi or "unknown")}
    features = next((line.partition(":")[2].split() for line in head if re.match(r"Features\s*:", line)), [])
    rounds: dict[Cell, list[dict[str, Any]]] = {}
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        given = re.fullmatch(r"round runtime=(\w+) threads=([1-9]\d?) workload=(fixed[1-9]\d{0,4})", lines[start])
        if given is None or given[1] not in TOOLS:
            runtimes = ", ".join(TOOLS)
            raise DataError(
                f"line {start + 1}: {lines[start][:80]!r} is not 'round runtime=... threads=... workload=fixedN' with "
                f"a runtime of {runtimes}; {AGAIN}"
            )
        read = _litert if TOOLS[given[1]] == "benchmark_model" else _onnxruntime
        cell = Cell(given[1], int(given[2]), given[3])
        rounds.setdefault(cell, []).append(read(lines[start + 1 : end], start + 1))
    if not rounds:
        raise DataError(
            "there is no line 'round runtime=...' in it; run the commands of the bundle's README.md as they are"
        )
    return found | {"flags": features, "rounds": rounds}


def table(found: Mapping[str, Any], sizes: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """The rows of a parsed text; ``sizes`` are the files' bytes by runtime. Judged by the rules that can be applied."""
    made = []
    for cell, its in found["rounds"].items():
        row = rows.empty("student_qad", cell, sizes.get(cell.runtime), "")
        for name in ("p50_ms", "p90_ms", "p99_ms", "load_ms", "cold_ms", "throughput_per_s"):
            values = [figures[name] for figures in its]
            row[name] = None if None in values else median(values)
        calls, p50 = min(figures["calls"] for figures in its), [figures["p50_ms"] for figures in its]
        spread = statistics.spread(p50)
        reasons = [
            *([f"{calls} calls a round, {rows.MIN_CALLS} needed"] if calls < rows.MIN_CALLS else []),
            *([f"{len(its)} rounds, {rows.MIN_ROUNDS} needed for an interval"] if len(its) < rows.MIN_ROUNDS else []),
            *([f"the quartiles of the rounds' p50 lie {spread:.0%} apart"] if spread > rows.MAX_SPREAD else []),
        ]
        row |= {"calls": calls, "rounds": len(its), "round_p50_ms": p50, "valid": not reasons}
        made.append(row | {"why_invalid": "; ".join(reasons) or None})
    return made


def _word(lines: list[str], word: str) -> str:
    return next((line[len(word) :].strip() for line in lines if line.startswith(f"{word} ")), "")


def _one(lines: list[str], pattern: str, wanted: str) -> re.Match[str]:
    hits = [match for line in lines if (match := re.fullmatch(pattern, line))]
    if len(hits) != 1:
        what = f"has {len(hits)} lines" if hits else "begins without a line"
        raise DataError(f"the text {what} {wanted!r}; {AGAIN}")
    return hits[0]


def _onnxruntime(lines: list[str], start: int) -> dict[str, Any]:
    told = dict(_told(lines, r"([A-Z][A-Za-z0-9 ]+): *(\S+)"))
    return {
        "p50_ms": 1000 * _number(told, "P50 Latency", start),
        "p90_ms": 1000 * _number(told, "P90 Latency", start),
        "p99_ms": 1000 * _number(told, "P99 Latency", start),
        "load_ms": 1000 * _number(told, "Session creation time cost", start),
        "cold_ms": None,  # printed in whole milliseconds
        "throughput_per_s": _number(told, "Number of inferences per second", start),
        "calls": int(_number(told, "Total inference requests", start, least=1)),
    }


def _litert(lines: list[str], start: int) -> dict[str, Any]:
    counted = [line for line in lines if re.search(r"\bcount=\d+ .*\bavg=", line)]
    told = dict(_told(counted[-1].split() if counted else [], r"(count|median|avg)=(\S+)"))
    for line in lines:
        told |= dict(_told(re.split(r", |us: ", line), r"(Init|First inference):\s*(\S+)"))
    return {
        "p50_ms": _number(told, "median", start) / 1000,
        "p90_ms": None,
        "p99_ms": None,
        "load_ms": _number(told, "Init", start) / 1000,
        "cold_ms": _number(told, "First inference", start) / 1000,
        "throughput_per_s": 1e6 / _number(told, "avg", start),
        "calls": int(_number(told, "count", start, least=1)),
    }


def _told(lines: list[str], pattern: str) -> Iterator[tuple[str, str]]:
    return ((match[1], match[2]) for line in lines if (match := re.match(pattern, line)))


def _number(told: Mapping[str, str], name: str, start: int, least: float = LEAST) -> float:
    try:
        value = float(told[name])
    except (KeyError, ValueError):
        value = math.nan
    if not least <= value <= MOST:
        said = f"{told[name][:40]!r}" if name in told else "nothing"
        raise DataError(
            f"the round that begins in line {start} says {said} for {name!r}, which no time or count can be; the "
            "tool failed there, or is an old one: run it again"
        )
    return value
