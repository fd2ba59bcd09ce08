"""One measurement in a process of its own: ``python -m edgekd.bench.child`` with a JSON job on stdin.

The job: ``runtime``, ``model`` and ``inputs`` (paths), ``workload``, ``threads``, ``cpus`` (to run on), ``calls``,
``warmup`` (see ``warm_up``), ``score`` (whether to go on over the whole test split), ``samples`` (the ``.npz`` to
write), ``calm_ns`` (the ``Canary.best_ns`` of the processes before this one, or null), ``parent`` (the process that
started this one) and, where there are any, the ``session`` options of onnxruntime. The answer is one line of JSON on
stdout; whatever a library prints goes to stderr. In the ``.npz``: ``call_ns`` int64 (calls,), ``null_ns`` int64 (the
same loop around nothing) and, if asked for, ``logits`` float32 (examples, classes).
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import runtimes
from edgekd.bench import proc, workloads
from edgekd.bench.canary import Canary
from edgekd.bench.stopwatch import timed
from edgekd.errors import BenchError, EdgekdError

Call = Callable[[dict[str, NDArray[Any]]], NDArray[Any]]
Feeds = dict[str, NDArray[Any]]

WARMUP = {"passes": 3, "calls_per_pass": 8, "gain": 0.02, "limit_s": 5.0}
"""At least so many passes over so many calls, until the best gains less than this share; within so many seconds."""

PAUSES_S = (0.0, 0.3, 0.9)
"""Before the first attempt at timing, and before those that follow a disturbed one."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job and return the answer; times in milliseconds, memory in MiB.

    ``import_rss_mib`` is the resident memory with the interpreter, numpy, the runtime and the inputs loaded, but no
    model; ``peak_rss_mib`` is how far the peak (VmHWM, reset at that point) then rose above it: what the model costs.
    """
    runtime = pinned(job)
    pid = getattr(runtime, "process", os.getpid)()  # where it computes
    inputs = workloads.load(Path(job["inputs"]))
    tokens = workloads.calls(job["workload"], inputs, job["calls"])
    null_ns = np.zeros(job["calls"], np.int64)
    gc.collect()
    peak_was_reset = proc.reset_peak(pid)
    import_rss_mib, _ = proc.memory_mib(pid)

    started = time.perf_counter_ns()
    session = opened(runtime, job)
    load_ms = (time.perf_counter_ns() - started) / 1e6
    prepared = [workloads.feeds(call, session.inputs) for call in tokens]
    cold_ms = _timed(session.run, prepared[:1], np.zeros(1, np.int64)) / 1e6
    warmup = warm_up(session.run, prepared, **job["warmup"])

    gc.disable()  # the harness's own garbage is not the model's latency
    _timed(getattr(session, "nothing", _nothing), prepared, null_ns)
    canary = Canary(job["calm_ns"])
    attempts = list(_attempts(session.run, prepared, job["threads"], canary, pid))
    _, usage, call_ns, disturbed = min(attempts, key=lambda attempt: attempt[0])
    gc.enable()

    arrays = {"call_ns": call_ns, "null_ns": null_ns}
    _, peak_mib = proc.memory_mib(pid)
    if job["score"]:
        arrays["logits"] = _logits(session, inputs)
    if job["workload"] == "real":  # the test split's documents are no part of another
        _, peak_mib = proc.memory_mib(pid)
    if "torch" in sys.modules and not runtimes.entry(job["runtime"]).torch:
        raise BenchError("torch was imported into a timed process; its thread pool disturbs the runtime's")
    save(Path(job["samples"]), arrays)
    return {
        "version": runtime.version(),
        **({"executed": session.executed()} if hasattr(session, "executed") else {}),
        "load_ms": load_ms,
        "cold_ms": cold_ms,
        "import_rss_mib": import_rss_mib,
        "peak_rss_mib": peak_mib - import_rss_mib,
        "peak_was_reset": peak_was_reset,
        "warmup_calls": warmup[0],
        "settled": warmup[1],
        "wall_s": usage.wall_s,
        "cpu_s": usage.cpu_s,
        "waited_s": usage.waited_s,
        "voluntary_switches": usage.voluntary_switches,
        "involuntary_switches": usage.involuntary_switches,
        "busy_threads": usage.busy_threads,
        "stolen": usage.stolen(job["threads"], job["calls"]),
        "neighbours": usage.neighbours(),
        "calm_ns": canary.best_ns,
        "disturbed_calls": disturbed,
    }


def pinned(job: dict[str, Any]) -> runtimes.Runtime:
    """The job's runtime, imported on the job's CPUs."""
    if job["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cpus"])  # before any library starts a thread, which inherits it
    return runtimes.get(job["runtime"])


def opened(runtime: runtimes.Runtime, job: dict[str, Any]) -> runtimes.Session:
    """The job's model, with the session options that it names, if any."""
    options = (job["session"],) if "session" in job else ()
    return runtime.load(Path(job["model"]), job["threads"], *options)


def warm_up(
    call: Call, prepared: list[Feeds], *, passes: int, calls_per_pass: int, gain: float, limit_s: float
) -> tuple[int, bool]:
    """Call until it gets no faster; return how many calls that took, and whether it was so after ``limit_s`` at last.

    First every distinct shape once, since runtimes prepare kernels and memory per shape. Then passes over the same
    few calls: the best pass so far only ever improves, by the runtime's own warming up or by a neighbour's going
    away, so it has settled once the last ``passes`` ones have together not lowered it by more than ``gain``.
    """
    deadline = time.perf_counter_ns() + int(limit_s * 1e9)
    shapes = workloads.one_of_each_shape(prepared)
    some = prepared[:: max(1, len(prepared) // calls_per_pass)][:calls_per_pass]
    scratch = np.zeros(max(len(shapes), len(some)), np.int64)
    _timed(call, shapes, scratch)
    best: list[int] = []  # the best pass so far, after each pass
    while True:
        took = _timed(call, some, scratch)
        best.append(min(took, best[-1]) if best else took)
        count = len(shapes) + len(best) * len(some)
        if len(best) <= passes:  # so many also of a model of whose shapes alone the time would not be enough
            continue
        if best[-1] > best[-1 - passes] * (1 - gain):
            return count, True
        if time.perf_counter_ns() > deadline:
            return count, False


def _attempts(
    call: Call, prepared: list[Feeds], threads: int, canary: Canary, pid: int | None = None
) -> Iterator[tuple[float, proc.Usage, NDArray[np.int64], float]]:
    """Time all calls; where neighbours disturbed that, wait a little and time them all again.

    Yields how disturbed an attempt was (above 1: too much), what it used, its times, and what ``Canary.time`` says of
    them. An attempt is repeated for what happened beside it, never for being slow.
    """
    for pause_s in PAUSES_S:
        time.sleep(pause_s)
        _timed(call, prepared[:8], np.zeros(8, np.int64))  # the caches and the clock after a pause
        call_ns = np.zeros(len(prepared), np.int64)
        meter = proc.Meter(pid)
        unsure = canary.time(call, prepared, call_ns)
        usage = meter.stop()
        stolen, neighbours = usage.stolen(threads, len(prepared)), usage.neighbours()
        disturbed = max(stolen / proc.MAX_STOLEN, neighbours / proc.MAX_NEIGHBOURS)
        yield disturbed, usage, call_ns, unsure
        if disturbed <= 1:
            return


def _timed(call: Call, prepared: list[Feeds], into: NDArray[np.int64]) -> int:
    """Time each call by itself into ``into`` (nanoseconds); return their sum."""
    return int(into[: timed(call, prepared, into)].sum())


def _nothing(feeds: Feeds) -> NDArray[Any]:
    return _NO_LOGITS


_NO_LOGITS = np.zeros((1, 1), np.float32)


def _logits(session: runtimes.Session, inputs: workloads.Inputs) -> NDArray[np.float32]:
    rows = [np.array(session.run(workloads.feeds(inputs[i], session.inputs)), np.float32) for i in range(len(inputs))]
    return np.concatenate(rows)


def save(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def serve(run: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """Read the job, answer on stdout; an error goes to stderr as one line, with its exit code."""
    job = json.load(sys.stdin)
    proc.die_with_parent(job["parent"])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries in other languages print where they like
    try:
        result = run(job)
    except EdgekdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(result, allow_nan=False), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(serve(run))
