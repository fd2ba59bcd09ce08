"""A shipped ``.onnx`` into the file that a runtime reads: in a process of its own, on a copy, without network.

Converters bring half a framework along, crash, and some write into what they read or tell their makers about it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import runtimes
from edgekd.bench import child, spawn, workloads
from edgekd.errors import ExportError

TIMEOUT_S = 1800.0


def convert(runtime: str, source: Path, out: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Write ``out`` and return what the runtime's ``convert`` says of it; or ``{"error": why}``, and nothing is there.

    ``lengths`` are the numbers of tokens that the file must take, for formats that fix them.
    """
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "model.onnx"
        for file in source.parent.glob(f"{source.name}*"):  # with external data
            shutil.copyfile(file, Path(folder) / file.name)
        made = Path(folder) / "out" / out.name
        made.parent.mkdir()
        job = {"runtime": runtime, "source": str(copied), "out": str(made), "lengths": list(lengths)}
        text = json.dumps({**job, "parent": os.getpid()}).encode()
        command = [*_offline(), sys.executable, "-P", "-m", "edgekd.runtimes.converting"]
        environment = {**spawn.environment(1), "ORT_DISABLE_TELEMETRY": "1", "JAX_PLATFORMS": "cpu"}
        try:
            done = subprocess.run(command, input=text, capture_output=True, timeout=TIMEOUT_S, env=environment)
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {TIMEOUT_S:.0f} s"}
        if done.returncode or not made.is_file():
            return {"error": spawn.reason(done.returncode, done.stderr.decode(errors="replace"))}
        for file in made.parent.iterdir():
            shutil.move(file, out.parent / file.name)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


LIMIT = 0.2
"""How far logits of a file may be from the graph's, as a share of their length, on one example: whether they are the
same function at all. What they are worth is for the whole test split to say."""


def difference(shipped: Any, loaded: runtimes.Session, lengths: Sequence[int], name: str) -> float:
    """How far the logits of a converted file are from its graph's, as a share of their length: the farthest of one
    example of each of ``lengths``.

    ``shipped`` is the ``onnx.ModelProto`` that was converted, ``name`` the runtime's. Raises ``ExportError`` beyond
    ``LIMIT``.
    """
    from edgekd.onnxio import audit

    graph, farthest = audit.session(shipped), 0.0
    for length in lengths:
        sample = workloads.feeds(np.arange(length) % 32, loaded.inputs)
        (expected,) = graph.run(["logits"], sample)
        logits = loaded.run(sample)
        same = logits.shape == expected.shape
        apart = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected)) if same else np.inf
        if not apart <= LIMIT:
            raise ExportError(f"{name} computes something else: its logits are {apart:.1%} from the graph's")
        farthest = max(farthest, apart)
    return farthest


@functools.cache
def _offline() -> tuple[str, ...]:
    """What to put before a command so that it sees no network, where the system allows that."""
    command = ("unshare", "--map-root-user", "--net")
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except OSError:
        return ()
    return command if allowed else ()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job of a converting process."""
    module: Any = runtimes.get(job["runtime"])
    found: dict[str, Any] = module.convert(Path(job["source"]), Path(job["out"]), tuple(job["lengths"]))
    return found


if __name__ == "__main__":
    sys.exit(child.serve(run))
