"""Measure every artifact in every runtime of the target, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekd import machine as this_machine
from edgekd import runtimes, spec, store, tasks
from edgekd.bench.measure import Artifact, measure

REVISION = 2

ARTIFACTS = ("teacher_fp32", "teacher_ort_dynamic", "student_fp32", "student_ptq", "student_qad")
"""In the order in which they take turns."""


def artifacts(export: Path) -> list[Artifact]:
    """What the ``export`` stage left in its folder, as ``measure`` takes it."""
    inputs = {kind: export / "inputs" / f"{kind}.npz" for kind in ("teacher", "student")}
    return [Artifact(name, export / name, inputs[name.partition("_")[0]]) for name in ARTIFACTS]


def run(
    ctx: store.Context,
    *,
    task: spec.Task,
    bench: spec.Bench,
    device: spec.Device,
    export: store.Stage,
    assets: store.Stage,
    machine: dict[str, object],
) -> None:
    """Write ``rows.json``, ``environment.json`` and the samples of every process to ``raw/``.

    ``machine`` (``edgekd.machine.fingerprint()``) is an input because the figures are the machine's: another machine,
    another key. ``environment.json`` holds it with the versions used, and ``missing_features``: what the device has and
    this machine lacks; where that is not empty the figures are a stand-in's.
    """
    rows = measure(
        artifacts(export.path),
        runtimes=bench.runtimes,
        threads=bench.threads,
        workloads=bench.workloads,
        rounds=bench.rounds,
        calls=bench.calls,
        out=ctx.out,
        progress=ctx.progress,
        score=tasks.TASKS[task.kind].score,
    )
    missing = this_machine.missing_features(device)
    if missing:
        lacks = ", ".join(missing)
        ctx.progress.log(f"this machine lacks {lacks} of {device.name}: its latencies are only a stand-in's")
    environment = {
        "machine": machine,
        "device": device.name,
        "missing_features": missing,
        "versions": {"python": sys.version.split()[0], **runtimes.installed()},
    }
    store.write_json(ctx.out / "environment.json", environment)
    store.write_json(ctx.out / "rows.json", rows)
