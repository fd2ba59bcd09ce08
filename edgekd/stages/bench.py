"""Measure every artifact in every runtime of the target, on this machine."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekd import runtimes, spec, store, tasks
from edgekd import session as session_options
from edgekd.bench.measure import Artifact, measure
from edgekd.bench.rows import Row
from edgekd.web import download

REVISION = 8

ARTIFACTS = ("teacher_fp32", "teacher_ort_dynamic", "student_fp32", "student_ptq", "student_qad")
"""In the order in which they take turns."""
FP32, SHIPPED = "student_fp32", ARTIFACTS[-1]
CONVERSION = "conversion.json"


def artifacts(
    export: Path, session: Mapping[str, Any] | None = None, conversions: Mapping[str, Path] | None = None
) -> list[Artifact]:
    """What the ``export`` stage left in its folder, as ``measure`` takes it; ``session`` is for what is shipped.

    ``conversions`` are the folders that ``convert`` left, by runtime.
    """
    inputs = {kind: export / "inputs" / f"{kind}.npz" for kind in ("teacher", "student")}
    made = conversions or {}
    return [
        Artifact(
            name,
            (export / name, *(folder / name for folder in made.values())),
            inputs[name.partition("_")[0]],
            (session or {}) if name == SHIPPED else {},
            {runtime: f"not converted: {why}" for runtime, folder in made.items() if (why := _error(folder / name))},
            _int8(export, name),
        )
        for name in ARTIFACTS
        if (export / name).is_dir()  # a black box has no graph
    ]


def _add_downloads(rows: list[Row], contenders: Sequence[Artifact]) -> None:
    """Fill in what a browser downloads (``edgekd.web.download``), for the students that one may ship to it."""
    files = {artifact.name: artifact.files for artifact in contenders if artifact.name in (FP32, SHIPPED)}
    sizes = functools.cache(lambda name, runtime: download.sizes(files[name](runtime)))
    for row in rows:
        name, runtime = row["artifact"], row["runtime"]
        browser = runtimes.entry(runtime).programs and runtimes.availability(runtime) is None
        if browser and name in files and row["size_bytes"] is not None:
            row["download"] = {"model": sizes(name, runtime), "runtime": download.runtime()}


def _runtime(conversion: store.Stage) -> str:
    return str(store.read_json(conversion.path / store.MANIFEST)["inputs"]["runtime"])


def _int8(export: Path, name: str) -> frozenset[str]:
    """The nodes that onnxruntime does in int8, by the export stage's audit: other runtimes are to do so too."""
    audits = store.read_json(export / "audit.json") if (export / "audit.json").is_file() else {}
    return frozenset(row["node"] for row in audits.get(name, {}).get("multiplications", ()) if row["int8"])


def _error(folder: Path) -> str | None:
    error: str | None = store.read_json(folder / CONVERSION).get("error")
    return error


def run(
    ctx: store.Context,
    *,
    task: spec.Task,
    bench: spec.Bench,
    export: store.Stage,
    assets: store.Stage,
    machine: dict[str, object],
    session: Mapping[str, Any],
    conversions: tuple[store.Stage, ...],
) -> None:
    """Write ``rows.json``, ``environment.json`` and the samples of every process to ``raw/``.

    ``machine`` (``edgekd.machine.fingerprint()``) is an input because the figures are the machine's: another machine,
    another key. The target's device is none: two targets that differ in it alone share what was measured.
    ``environment.json`` holds the machine with the versions used. ``session`` holds the options of onnxruntime that
    `edgekd tune` chose for the shipped student; ``conversions`` are the ``convert`` stages, one for each runtime that
    reads no ``.onnx`` and whose converter is installed.
    """
    if session:
        ctx.progress.log(f"bench: {SHIPPED} with the session options of `edgekd tune`: {session_options.text(session)}")
    contenders = artifacts(export.path, session, {_runtime(stage): stage.path for stage in conversions})
    rows = measure(
        contenders,
        runtimes=bench.runtimes,
        threads=bench.threads,
        workloads=bench.workloads,
        rounds=bench.rounds,
        calls=bench.calls,
        out=ctx.out,
        progress=ctx.progress,
        score=tasks.TASKS[task.kind].score,
    )
    _add_downloads(rows, contenders)
    environment = {
        "machine": machine,
        "versions": {"python": sys.version.split()[0], **runtimes.installed()},
        "session": dict(session),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.write_json(ctx.out / "environment.json", environment)
    store.write_json(ctx.out / "rows.json", rows)
