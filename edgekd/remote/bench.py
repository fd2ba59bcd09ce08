"""`edgekd bench`: a shipped bundle on a device, beside its teacher where the run's store still has it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from packaging.version import Version

from edgekd import runtimes as runtime_table
from edgekd import session as session_options
from edgekd import ship, store, tasks
from edgekd.bench import child, measure
from edgekd.bench.conditions import HOT_C, throttled
from edgekd.bench.measure import Artifact
from edgekd.bench.spawn import ChildFailed
from edgekd.bundle import MODEL
from edgekd.errors import BenchError, HostUnfitError, MissingDependencyError, UsageError
from edgekd.progress import Progress
from edgekd.remote.device import Device
from edgekd.report import build, devices, figures, files, schema
from edgekd.runner import conversions_of
from edgekd.spec import Bench
from edgekd.stages import bench as bench_stage

DEFAULT = ("teacher_fp32", "student_fp32", bench_stage.SHIPPED)
"""What is measured on a device: what ships, and what its speed is held against."""

RUNTIMES = ("ort_cpu", "ort_mobile", "openvino", "litert")
"""Those that a device's Python can have."""

TIMEOUT_S = 3600.0
SPARE_MIB = 128
MINUTE_S = 60


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for; ``None``: as the target has it.

    ``runtimes`` and ``artifacts`` are names, ``sustained_s`` how long what ships is then called without a pause,
    ``name`` what the device is called in the report (its CPU or board), ``folder`` where on it the temporary folder is
    made.
    """

    artifacts: tuple[str, ...] = DEFAULT
    runtimes: tuple[str, ...] | None = None
    rounds: int | None = None
    calls: int | None = None
    sustained_s: float | None = None
    name: str | None = None
    folder: str | None = None


def bench(
    bundle: Path, where: str | None, command: Sequence[str], asked: Asked, runs: Path, progress: Progress
) -> dict[str, Any]:
    """Measure ``bundle`` where ``command`` starts Python (``where``: its address, ``None`` for this machine).

    The result is kept in ``runs`` beside the bundle's run and merged into its report (``merging``); returned is the
    record (``report.devices``) with ``report``, that report's path or null, and ``place``, the folder with the samples.

    Raises ``BundleError`` for an altered bundle; ``HostError``, ``HostLostError``, ``HostUnfitError`` and
    ``MissingDependencyError`` as ``Device`` does; the latter also where the device has none of the runtimes.
    """
    manifest, report = ship.verify_files(bundle), schema.load(bundle / "report.json")
    run, model, what = runs / manifest["run"], manifest["files"][MODEL]["sha256"], where or "this machine"
    plan = _plan(report, manifest, asked)
    with (
        _artifacts(bundle, manifest, report, runs, asked, progress) as artifacts,
        Device(what, command, asked.folder, progress) as device,
    ):
        there = device.describe(plan["runtimes"], plan["threads"])
        missing = _fit(what, there, manifest, plan["runtimes"], artifacts, progress)
        name = asked.name or there["machine"]["cpu"]
        place = devices.folder(run, name, model)
        (place / "raw").mkdir(parents=True, exist_ok=True)
        rows = measure.measure(
            artifacts,
            **plan,
            out=place,
            progress=progress,
            score=tasks.TASKS[manifest["task"]].score,
            timeout_s=TIMEOUT_S,
            host=device,
        )
        after, _ = device.ask("conditions")
        found = {
            "name": name,
            "by": "edgekd's harness" + (" over ssh" if where else ""),
            "imported": False,
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "missing": missing,
            "machine": there["machine"],
            "versions": there["versions"],
            "before": there["conditions"],
            "after": after,
            "throttled": throttled(there["conditions"], after),
            "sustained": None,
        }
        latency = [one for row in rows if (one := build.histogram(place / "raw", row)) is not None]
        record = devices.record(place, model, found, rows, latency)
        written = files.merge(report, run, model)
        if asked.sustained_s:  # which may be cut off
            found["sustained"] = _sustained(device, artifacts, plan, asked.sustained_s, place, progress)
            record = devices.record(place, model, found, rows, latency)
            written = files.merge(report, run, model)
    if written is None:
        progress.log(f"{run} has another model meanwhile, so its report stays as it is; the rows are in {place}")
    return {**record, "place": str(place), "report": str(written) if written else None}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What to print of a record: a line a row, the long run, and where it all is."""
    for row in found["rows"]:
        what = f"{figures.artifact(row['artifact'])} ({figures.where(row)})"
        if not row["valid"]:
            yield f"INVALID: {what}: {row['why_invalid']}"
            continue
        span = figures.span(row["speedup_low"], row["speedup_high"])
        ratio = f", {figures.ratio(row['speedup_vs_teacher'])} as fast as the teacher (95%: {span})" if span else ""
        yield f"{what}: p50 {figures.amount(row['p50_ms'], 'ms')}, p90 {figures.amount(row['p90_ms'], 'ms')}{ratio}"
    if (told := devices.sustained(found["device"])) is not None:
        yield told
    yield f"samples: {found['place']}"
    if found["report"]:
        yield f"report: {Path(found['report']).with_suffix('.html')}"


# ------------------------------------------------------------------------------------------------------ what to measure


def _plan(report: Mapping[str, Any], manifest: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """What the target asks for, as far as a device's Python may have the runtimes; or as asked.

    An old report does not tell it, but what the run's own bench measured: less, on fewer CPUs or without a runtime.
    """
    own = [row for row in report["rows"] if figures.device(row) is None]
    can = [name for name in RUNTIMES if name in ("ort_cpu", "openvino") or name in manifest.get("runtimes", {})]
    names = asked.runtimes or tuple(dict.fromkeys(row["runtime"] for row in own if row["runtime"] in can))
    if unknown := sorted(set(names) - set(can)):
        raise UsageError(f"this bundle has no file for {unknown[0]!r} on a device, but for {', '.join(can)}")
    default, target = Bench(), report["device"]
    threads = target.get("threads") or dict.fromkeys(row["threads"] for row in own)
    measured = {name: dict.fromkeys(row["workload"] for row in own if row["runtime"] == name) for name in names}
    return {
        "runtimes": names or default.runtimes,
        "threads": tuple(threads) or default.threads,
        "workloads": {
            name: tuple(target.get("workloads", {}).get(name) or measured[name]) or ("real",) for name in names
        },
        "rounds": asked.rounds or max((row["rounds"] for row in own), default=0) or default.rounds,
        "calls": asked.calls or max((row["calls"] for row in own), default=0) or default.calls,
    }


@contextmanager
def _artifacts(
    bundle: Path,
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    runs: Path,
    asked: Asked,
    progress: Progress,
) -> Iterator[list[Artifact]]:
    """What ships, from the bundle itself; what it is compared with, from the run's store, where that has it."""
    unknown = sorted(set(asked.artifacts) - set(bench_stage.ARTIFACTS))
    if unknown:
        raise UsageError(f"there is no artifact {unknown[0]!r}; there are {', '.join(bench_stage.ARTIFACTS)}")
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        named = Path(folder) / bench_stage.SHIPPED  # runtimes know their files by name
        named.mkdir()
        (named / "model.onnx").symlink_to((bundle / MODEL).resolve())
        folders = (named, *(bundle / name for name in manifest.get("runtimes", {})))
        kept = {name: runs / "store" / stage["folder"] for name, stage in report["stages"].items()}
        export = kept.get("export", Path(folder) / "none")
        if (why := _stale(export, manifest)) is None:
            conversions = {name: path for name, path in conversions_of(kept).items() if path.is_dir()}
            found = bench_stage.artifacts(export, session_options.chosen(manifest), conversions)
            found = [one for one in found if one.name in {*asked.artifacts, bench_stage.SHIPPED}]
            yield [replace(one, folders=folders) if one.name == bench_stage.SHIPPED else one for one in found]
        else:
            progress.log(f"bench: {why}; so there is nothing to compare with, and no ratio: give the run's --store")
            inputs = _inputs(bundle, manifest, Path(folder))
            yield [Artifact(bench_stage.SHIPPED, folders, inputs, session_options.chosen(manifest))]


def _stale(export: Path, manifest: Mapping[str, Any]) -> str | None:
    """Why the export stage is not that of the bundle."""
    if not export.is_dir():
        return f"there is no {export}"
    if (why := store.problem(export, contents=True)) is not None:
        return f"{export}: {why}"
    file = export / bench_stage.SHIPPED / "model.onnx"
    return None if store.sha256(file) == manifest["files"][MODEL]["sha256"] else f"{export} holds another model"


def _inputs(bundle: Path, manifest: Mapping[str, Any], folder: Path) -> Path:
    """The test split as the bundle's tokenizer reads it, from its source."""
    from edgekd import deploy

    dataset, classify = ship.dataset(manifest), deploy.load(bundle)
    ids = [classify.feeds([text])["input_ids"][0] for text in dataset.test.texts]
    offsets = np.cumsum([0, *map(len, ids)])
    labels = [classify.labels.index(dataset.labels[label]) for label in dataset.test.labels]
    np.savez(folder / "student.npz", ids=np.concatenate(ids), offsets=offsets, labels=np.array(labels))
    return folder / "student.npz"


# ----------------------------------------------------------------------------------------------------------- the device


def _fit(
    what: str,
    there: Mapping[str, Any],
    manifest: Mapping[str, Any],
    names: Sequence[str],
    artifacts: Sequence[Artifact],
    progress: Progress,
) -> list[str]:
    """What the device lacks of the bundle's; says what may spoil the figures.

    Raises ``HostUnfitError`` or ``MissingDependencyError`` for a device that cannot measure this.
    """
    machine, state, device = there["machine"], there["conditions"], manifest.get("device") or {}
    if device and machine["isa"] != device["isa"]:
        raise HostUnfitError(f"{what} is {machine['isa']} ({machine['cpu']}), and the bundle is for {device['isa']}")
    lacking = [name for name in names if name in there["lacking"]]
    if len(lacking) == len(names):
        packages = " ".join(dict.fromkeys(runtime_table.entry(name).package.replace("_", "-") for name in lacking))
        raise MissingDependencyError(
            f"{what} has no runtime for this bundle; install one there: {there['executable']} -m pip install {packages}"
        )
    version, least = there["versions"].get("onnxruntime"), manifest["minimum_onnxruntime"]
    needs = any(runtime_table.entry(name).package == "onnxruntime" for name in names)
    if needs and version and Version(version) < Version(least):
        raise MissingDependencyError(
            f"{what} has onnxruntime {version}, and the bundle needs {least}: {there['executable']} -m pip install "
            f"'onnxruntime>={least}'"
        )
    sizes = [artifact.size_bytes(name) for artifact in artifacts for name in names if name not in lacking]
    needed = {"memory": 3 * max(sizes) // 2**20 + SPARE_MIB, "disk": sum(sizes) // 2**20 + SPARE_MIB}
    free = {"memory": state["available_mib"], "disk": there["free_bytes"] // 2**20}
    for kind, wanted in needed.items():
        if free[kind] is not None and free[kind] < wanted:
            help_ = "end something there" if kind == "memory" else "give another --folder"
            raise HostUnfitError(
                f"{what} has {free[kind]} MiB of {kind} free, and about {wanted} are needed; {help_}, or leave the "
                "teacher out with --artifact student_qad"
            )
    missing = devices.missing(device, machine) if device else []
    told = f"{machine['cpu']}, {machine['isa']}, {there['usable_threads']} threads, {state['available_mib']} MiB free"
    heat = "" if state["temperature_c"] is None else f", {state['temperature_c']:.0f} °C"
    progress.log(f"{what}: {told}{heat}, governor {machine['governor'] or 'unknown'}")
    if missing:
        progress.log(f"{what} lacks {', '.join(missing)} of {device['name']}: its rows are marked host-proxy")
    if machine["governor"] not in (None, "performance"):
        progress.log(f"{what}: governor {machine['governor']!r} changes the clock; 'performance' gives steadier times")
    if (state["temperature_c"] or 0) >= HOT_C or state["throttled"]:
        progress.log(f"{what} is hot: let it cool first, or its clock will be held back")
    return missing


def _sustained(
    device: Device,
    artifacts: Sequence[Artifact],
    plan: Mapping[str, Any],
    seconds: float,
    place: Path,
    progress: Progress,
) -> dict[str, Any]:
    """What ships, called without a pause in the first runtime that the device has, one thread, real lengths."""
    runtime = next(name for name in plan["runtimes"] if device.availability(name) is None)
    (artifact,) = (one for one in artifacts if one.name == bench_stage.SHIPPED)
    about = {"runtime": runtime, "threads": 1, "workload": "real"}
    job = {
        **about,
        "model": str(artifact.file(runtime)),
        "inputs": str(artifact.inputs),
        "cpus": device.pick_cpus(1),
        "calls": plan["calls"],
        "warmup": child.WARMUP,
        "sustain_s": seconds,
        "minute_s": min(MINUTE_S, seconds),
        "samples": str(place / "raw" / f"sustained.{runtime}.npz"),
    }
    if artifact.session and runtime == measure.REFERENCE_RUNTIME:
        job["session"] = dict(artifact.session)
    progress.log(f"sustained: {seconds / 60:.1f} minutes of {artifact.name} in {figures.runtime(runtime)}")
    try:
        return about | device.measure(job, seconds + TIMEOUT_S, "edgekd.bench.sustained")
    except ChildFailed as error:
        raise BenchError(f"the long run failed: {error}; the other rows are in the report") from error
