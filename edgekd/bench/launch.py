"""Start a measuring child, wait for it, and keep what it found."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import edgekd
from edgekd import store
from edgekd.bench import rows
from edgekd.bench.workloads import UNREADABLE
from edgekd.errors import BenchError


class ChildFailed(Exception):
    """The child crashed, gave up or took too long; the message is the reason for the row."""


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
    command = [sys.executable, "-P", "-m", "edgekd.bench.child"]
    text, env = json.dumps({**job, "parent": os.getpid(), "calm_ns": calm_ns}).encode(), environment(job["threads"])
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=timeout_s, env=env)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"took longer than {timeout_s:.0f} s") from None
    except OSError as error:
        raise BenchError(f"cannot start {sys.executable}: {error}") from error
    if done.returncode != 0:
        why = reason(done.returncode, done.stderr.decode(errors="replace"))
        if store.disk_full(OSError(why)):
            raise store.full_disk_error(OSError(why))
        raise ChildFailed(why)
    try:
        answer = json.loads(done.stdout)
        figures = rows.summary(answer, samples)
    except UNREADABLE as error:
        raise ChildFailed(f"ended without an answer ({error})") from None
    store.write_json(samples.with_suffix(".json"), {"digest": wanted, "answer": answer})
    return figures


def logits(samples: Path) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The logits of the whole test split, if that child was to score it."""
    with np.load(samples, allow_pickle=False) as file:
        return file["logits"] if "logits" in file.files else None


def environment(threads: int) -> dict[str, str]:
    """A child's environment: this package importable, and the thread pools that read a variable at the asked size."""
    package = str(Path(edgekd.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # numpy's, which only the harness uses
    }


def reason(code: int, stderr: str) -> str:
    """Why a child ended so: the signal that ended it, or the last line that it said."""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"crashed with {names.get(-code, f'signal {-code}')}{memory}" + (f": {last[:300]}" if last else "")
    return last[:300] or f"ended with exit code {code}"
