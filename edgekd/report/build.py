"""The report of a run, from the folders of its finished stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgekd
from edgekd import store
from edgekd.bench import launch, workloads
from edgekd.bench.rows import Cell
from edgekd.errors import StoreError
from edgekd.report import conclude, devices, verdicts
from edgekd.report.schema import SCHEMA
from edgekd.runner import conversions_of
from edgekd.spec import BlackBox, Distill, Target
from edgekd.spec.blackbox import FORBIDDEN
from edgekd.spec.literal import literal

HISTOGRAM_STEP = 1.05
"""Each bin of a latency histogram is this much wider than the one before."""


def build(
    target: Target,
    folders: Mapping[str, Path],
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    run: str,
    stage_info: Mapping[str, Mapping[str, Any]],
    created: str | None = None,
    isa: Sequence[Mapping[str, Any]] = (),
    session: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of format ``edgekd.report/1`` (see ``schema.json``).

    ``folders`` holds the folder of every stage from ``assets`` to ``bench``, ``stage_info`` their ``{"key", "folder",
    "seconds"}``; ``created`` is when it was measured, in UTC, now by default; ``isa`` is what ``isa.verify`` found
    of the shipped file, ``session`` the options of onnxruntime with which that was measured. Raw samples that are gone
    only cost the histograms and the verdict on QAD; any other missing or unreadable file raises ``StoreError``.
    ``folders`` also has those of the conversions, as ``convert_<runtime>``.
    """
    read = _Reader(folders)
    dataset, rows = read("assets", "dataset.json"), read("bench", "rows.json")
    taught = read("transfer", "dataset.json") if "transfer" in folders else dataset
    runtime = target.bench.runtimes[0]
    right = {name: _right(folders, name, runtime) for name in (verdicts.SHIPPED, "student_ptq")}
    models = _models(target, read)
    quality = verdicts.quality(right[verdicts.SHIPPED], right["student_ptq"])
    if not models["training"]["quantize"]["trained"]:
        quality = verdicts.UNTRAINED
    data = target.task.licence or dataset.get("licence")
    licences = {"teacher": _licence(target), "terms": _terms(target), "data": data}
    backbones = {student.source: student.licence for student in target.learners if student.source is not None}
    if backbones:
        licences["student"] = _all(backbones.values())
    device = _device(target, machine)
    report = {
        "schema": SCHEMA,
        "edgekd_version": edgekd.__version__,
        "target": target.name,
        "run": run,
        "smoke": target.smoke,
        "seed": target.seed,
        "created": created or datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": dict(machine),
        "versions": dict(versions),
        "task": _task(target, {**dataset, "counts": taught["counts"]}),
        **dict.fromkeys(conclude.CONCLUSIONS),
        **models,
        "rows": [row | {"host": None, "measured_on": devices.measured_on(device["missing"])} for row in rows],
        "conversions": {name: _conversions(folder) for name, folder in conversions_of(folders).items()},
        "latency": [found for row in rows if (found := histogram(folders["bench"] / "raw", row)) is not None],
        "devices": [],
        "sizes": read("export", "sizes.json"),
        "audit": read("export", "audit.json"),
        "parity": read("export", "parity.json"),
        "isa": [dict(row) for row in isa],
        "session": dict(session or {}),
        "stages": {name: dict(info) for name, info in stage_info.items()},
        "licences": licences,
    }
    return conclude.conclude(report, target.budget, quality, runtime)


class _Reader:
    """Reads a stage's JSON file, and says which stage is to blame if it cannot."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    def __call__(self, stage: str, name: str) -> Any:
        try:
            return store.read_json(self._folders[stage] / name)
        except (KeyError, OSError, ValueError) as error:
            raise StoreError(
                f"the {stage} stage left no readable {name} ({error}); make it again with `edgekd run --fresh {stage}`"
            ) from error


def _device(target: Target, machine: Mapping[str, Any]) -> dict[str, Any]:
    device = target.device
    missing = device.differs(machine.get("isa", device.isa), machine.get("flags", ()))
    named: dict[str, Any] = {"name": device.name, "isa": device.isa, "features": list(device.features)}
    named |= {"without": list(device.without), "system": device.system}
    named |= {"cores": device.cores, "threads": list(target.bench.threads), "memory_mib": device.memory_mib}
    asked = target.bench
    named["workloads"] = {name: list(workloads.asked_of(asked.workloads, name)) for name in asked.runtimes}
    return named | {"missing": missing}


def _task(target: Target, dataset: Mapping[str, Any]) -> dict[str, Any]:
    task = target.task
    sources = {"train": task.train, "validation": task.validation, "test": task.test}
    found = {name: dataset[name] for name in ("labels", "counts", "fingerprint")}
    given = dataclasses.asdict(task)
    longest = target.student.reading(task).max_length  # the shipped student's; the teacher's is in ``spec``
    return {"kind": task.kind, "max_length": longest, "sources": sources, "spec": given, **found}


def _licence(target: Target) -> str | None:
    """Those of all teachers: the student comes of each."""
    return _all(teacher.licence for teacher in (target.teacher, *target.co_teachers))


def _all(licences: Iterable[str | None]) -> str | None:
    """Every one of them, once; ``None`` if one is not stated."""
    found = list(licences)
    return " and ".join(dict.fromkeys(filter(None, found))) if all(found) else None


def _terms(target: Target) -> str | None:
    """The strictest of all teachers'. ``None`` if one is not stated."""
    found = [teacher.terms for teacher in (target.teacher, *target.co_teachers)]
    return FORBIDDEN if FORBIDDEN in found else None if None in found else found[0]


def _models(target: Target, read: _Reader) -> dict[str, Any]:
    """What the training stages wrote about teacher, student and their training."""
    teacher, student = read("teacher", "scores.json"), read("distill", "student.json")
    distill, quantize = read("distill", "scores.json"), read("quantize", "scores.json")
    quant = read("quantize", "quant.json")
    asked: dict[str, Any] = {"scheme": target.quant.scheme, "keep_float": list(target.quant.keep_float)}
    if target.quant.static:
        asked |= {"calibration": target.quant.calibration, "method": target.quant.method}
    if target.quant.mixed:
        asked["mixed"] = [list(pair) for pair in target.quant.mixed.items()]
    if "w4_block" in target.quant.schemes:
        asked["block"] = target.quant.block
    found = {name: value for name, value in quant.items() if name != "ranges"}
    return {
        "teacher": {
            "source": target.teacher.name if isinstance(target.teacher, BlackBox) else target.teacher.source,
            "black_box": isinstance(target.teacher, BlackBox),
            "licence": target.teacher.licence,
            "also": [teacher.source for teacher in target.co_teachers],
            "also_scores": [
                _by_split(read(f"teacher_also{i}", "scores.json")) for i in range(1, 1 + len(target.co_teachers))
            ],
            "parameters": teacher.get("parameters"),
            "scores": _by_split(teacher),
        },
        "student": {
            "source": target.student.source,
            **student,
            **read("export", "read.json"),
            "scores": {"validation": distill["validation"]},
        },
        "training": {
            "teacher": teacher.get("training"),
            "distill": {
                **distill["training"],
                "taught": literal(dataclasses.replace(target.distill, losses=Distill().losses)),
                "losses": [literal(loss) for loss in target.distill.losses],
                "exits": distill.get("exits", {}),
            },
            "quantize": {
                **asked,
                **found,
                **quantize["training"],
                "qat_step_time_ratio": quantize.get("qat_step_time_ratio"),
                "scores": {name: quantize[name] for name in ("ptq", "qad") if name in quantize},
            },
        },
    }


def _by_split(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {split: scores[split] for split in ("validation", "test") if split in scores}


def _conversions(folder: Path) -> dict[str, Any]:
    """What the converter of a runtime said of every artifact (see ``edgekd.runtimes.converting``)."""
    return {path.parent.name: store.read_json(path) for path in sorted(folder.glob("*/conversion.json"))}


# -------------------------------------------------------------------------------------------------------------- samples


def _right(folders: Mapping[str, Path], artifact: str, runtime: str) -> NDArray[np.bool_] | None:
    """Which test examples the artifact answers rightly (shape (N,)), by its first round's logits; None if gone."""
    samples = launch.samples_file(folders["bench"] / "raw", artifact, Cell(runtime, 1, "real"), 0)
    inputs = folders["export"] / "inputs" / "student.npz"
    if not samples.is_file() or not inputs.is_file():
        return None
    with np.load(samples, allow_pickle=False) as file, np.load(inputs, allow_pickle=False) as given:
        if "logits" not in file.files:
            return None
        answers, labels = file["logits"].argmax(axis=1), given["labels"]
    return np.asarray(answers == labels, bool) if answers.shape == labels.shape else None


def histogram(raw: Path, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The calls of a row in bins of equal ratio, without the slowest thousandth; None without samples."""
    place = {name: row[name] for name in ("artifact", "runtime", "threads", "workload")}
    cell = Cell(row["runtime"], row["threads"], row["workload"])
    times = []
    for number in range(row["rounds"]):
        path = launch.samples_file(raw, row["artifact"], cell, number)
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                times.append(file["call_ns"] / 1e6)
    if not times:
        return None
    logs = np.log(np.sort(np.concatenate(times)))
    bins = np.floor(logs[: max(1, int(len(logs) * 0.999))] / np.log(HISTOGRAM_STEP)).astype(int)
    first = float(HISTOGRAM_STEP ** int(bins[0]))
    return {**place, "first_ms": first, "step": HISTOGRAM_STEP, "counts": np.bincount(bins - bins[0]).tolist()}
