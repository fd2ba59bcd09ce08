"""Calls without a pause for minutes, in a process of its own: what heat does. ``python -m edgekd.bench.sustained``.

The job is that of ``edgekd.bench.child`` with ``sustain_s``, how long, and ``minute_s``, which is 60. In the ``.npz``:
``call_ns`` int64, every call in order, and ``minute`` int64, the minute in which each began.
"""

from __future__ import annotations

import gc
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bench import child, workloads
from edgekd.bench.conditions import conditions, throttled


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job: ``minutes`` (``p50_ms``, ``p90_ms``, ``calls``, ``temperature_c``, ``frequency_mhz`` of each).

    ``slowdown`` is the last minute's median over the first's, ``throttled`` what the system says of its clock
    (``None``: nothing).
    """
    runtime = child.pinned(job)
    inputs = workloads.load(Path(job["inputs"]))
    session = child.opened(runtime, job)
    tokens = workloads.calls(job["workload"], inputs, job["calls"])
    prepared = [workloads.feeds(call, session.inputs) for call in tokens]
    child.warm_up(session.run, prepared, **job["warmup"])
    gc.disable()
    before, clock, minute_ns = conditions(), time.perf_counter_ns, int(job["minute_s"] * 1e9)
    took, minute = array("q"), array("q")
    states: list[dict[str, Any]] = []
    started = now = clock()
    end = started + int(job["sustain_s"] * 1e9)
    while now < end:
        number = (now - started) // minute_ns
        while number > len(states):
            states.append(conditions())  # between two calls: it is not in either's time
        before_ns = clock()
        session.run(prepared[len(took) % len(prepared)])
        now = clock()
        took.append(now - before_ns)
        minute.append(number)
    states.append(conditions())
    arrays = {"call_ns": np.array(took, np.int64), "minute": np.array(minute, np.int64)}
    child.save(Path(job["samples"]), arrays)
    return {"seconds": job["sustain_s"], **summary(arrays, states), "throttled": throttled(before, states[-1])}


def summary(arrays: dict[str, Any], states: list[dict[str, Any]]) -> dict[str, Any]:
    """The minutes of ``arrays`` with the ``states`` (``conditions``) at their ends, and the slowdown over them."""
    minutes = []
    for number, state in enumerate(states):
        call_ms = arrays["call_ns"][arrays["minute"] == number] / 1e6
        if len(call_ms):
            p50, p90 = (float(value) for value in np.percentile(call_ms, [50, 90]))
            told = {name: state[name] for name in ("temperature_c", "frequency_mhz")}
            minutes.append({"minute": number + 1, "p50_ms": p50, "p90_ms": p90, "calls": len(call_ms), **told})
    return {"minutes": minutes, "slowdown": minutes[-1]["p50_ms"] / minutes[0]["p50_ms"]}


if __name__ == "__main__":
    sys.exit(child.serve(run))
