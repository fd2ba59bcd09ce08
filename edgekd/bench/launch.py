"""Start a measuring child, wait for it, and keep what it found."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import store
from edgekd.bench import rows
from edgekd.bench.spawn import ChildFailed as ChildFailed
from edgekd.bench.spawn import spawn
from edgekd.bench.workloads import UNREADABLE


def samples_file(raw: Path, artifact: str, cell: rows.Cell, number: int) -> Path:
    """Where round ``number`` of a cell leaves an artifact's samples: ``call_ns``, and ``logits`` if it was to score."""
    runtime = re.sub(r"\W+", "-", cell.runtime)[-40:]
    return raw / f"{artifact}.{runtime}.t{cell.threads}.{cell.workload}.r{number}.npz"


def digest(job: dict[str, Any], contents: dict[str, str]) -> str:
    """What a kept result answers: the job, with its files by their ``contents`` (SHA-256) and not by their paths."""
    asked = {key: value for key, value in job.items() if key not in ("model", "inputs", "samples")}
    text = json.dumps({**asked, "contents": contents}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def kept(job: dict[str, Any], wanted: str) -> dict[str, Any] | None:
    """The figures that an earlier child found for the same job, or ``None``."""
    samples = Path(job["samples"])
    try:
        found = store.read_json(samples.with_suffix(".json"))
        if found["digest"] != wanted:
            return None
        return rows.summary(found["answer"], samples)
    except (*UNREADABLE, TypeError):
        return None


def launch(job: dict[str, Any], wanted: str, timeout_s: float, calm_ns: int | None = None) -> dict[str, Any]:
    """Run the job in a fresh process, keep its answer beside the samples, and return the figures.

    ``calm_ns`` is the quickest ``Canary`` loop of the processes before it.

    Raises ``ChildFailed``; then nothing is kept. Raises ``StoreError`` where the disk is full, and
    ``BenchError`` where no process can be started at all.
    """
    samples = Path(job["samples"])
    samples.with_suffix(".json").unlink(missing_ok=True)
    try:
        answer = spawn({**job, "calm_ns": calm_ns}, timeout_s)
    except ChildFailed as error:
        if store.disk_full(error):
            raise store.full_disk_error(error) from error
        raise
    return keep(answer, samples, wanted)


def keep(answer: dict[str, Any], samples: Path, wanted: str) -> dict[str, Any]:
    """Write a child's answer beside its samples, for ``kept`` to find, and return the figures.

    Raises ``ChildFailed`` where the samples are not what a child leaves.
    """
    try:
        figures = rows.summary(answer, samples)
    except UNREADABLE as error:
        raise ChildFailed(f"ended without an answer ({error})") from None
    store.write_json(samples.with_suffix(".json"), {"digest": wanted, "answer": answer})
    return figures


def logits(samples: Path) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The logits of the whole test split, if that child was to score it."""
    with np.load(samples, allow_pickle=False) as file:
        return file["logits"] if "logits" in file.files else None
