"""The CPUs that an artifact can be run on here: this one, and those that QEMU emulates for a single process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import machine, spec
from edgekd.bench.proc import die_with_parent
from edgekd.errors import BenchError, MissingDependencyError
from edgekd.isa import arm64

CHILD = Path(__file__).with_name("child.py")
LEAST_QEMU = (7, 2)
"""The first QEMU whose emulation of x86 has AVX2; an older one ignores that it is asked for it."""

TIMEOUT_S = 3600


@dataclass(frozen=True)
class Cpu:
    """A CPU to run on. ``model`` is what QEMU calls it, ``""`` this machine's own."""

    isa: str
    model: str = ""
    emulator: str = ""


ISAS = {
    "avx2": (Cpu("avx2", "Haswell", "qemu-x86_64"),),
    "vnni": (Cpu("vnni"),),
    "arm64": (Cpu("arm64", "cortex-a76", "qemu-aarch64"), Cpu("arm64", "cortex-a72", "qemu-aarch64")),
}
"""Haswell has AVX2 and no VNNI; the Cortex-A76 has the dot product, the A72 has not; QEMU emulates no VNNI."""


def require(isa: str, *, install: bool = False) -> None:
    """Raise ``MissingDependencyError``, with the command that helps, if nothing can be run on ``isa`` here.

    ``install`` fetches the arm64 Python first if it is not there (``arm64.install``).
    """
    if isa == "vnni" and (lacks := machine.missing_features(spec.X86_VNNI)):
        raise MissingDependencyError(
            f"skipped: this CPU lacks {', '.join(lacks)}, which QEMU does not emulate; verify it on one that has it"
        )
    if isa == "avx2" and machine.isa() != "x86_64":
        raise MissingDependencyError(
            f"skipped: avx2 needs a Python for x86_64, and this machine is {machine.isa()}; verify the bundle on x86_64"
        )
    for emulator in {cpu.emulator for cpu in ISAS[isa]} - {""}:
        _require_emulator(emulator)
    if isa == "arm64" and install:
        arm64.install()
    if isa == "arm64" and not arm64.installed():
        raise MissingDependencyError(
            f"skipped: there is no arm64 Python with onnxruntime {arm64.onnxruntime_version()} in {arm64.folder()}; "
            "fetch it (200 MB on disk, nothing outside that folder is touched) by adding --install"
        )


def emulator_version(emulator: str) -> str:
    """``7.2.17`` for ``qemu-x86_64``; empty for none."""
    if not emulator:
        return ""
    done = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+(?:\.\d+)+)", done.stdout)
    return found[1] if found else ""


def _require_emulator(emulator: str) -> None:
    advice = "apt-get install -y --no-install-recommends qemu-user"
    if shutil.which(emulator) is None:
        raise MissingDependencyError(f"skipped: {emulator} is not installed; install it with: {advice}")
    version = emulator_version(emulator)
    if not version or tuple(int(part) for part in version.split(".")) < LEAST_QEMU:
        least = ".".join(map(str, LEAST_QEMU))
        raise MissingDependencyError(
            f"skipped: {emulator} is {version or 'of no known version'}, {least} is needed; install it with: {advice}"
        )


def command(cpu: Cpu, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts a Python with onnxruntime on ``cpu``, and its environment.

    ``folder`` is an empty one that must live as long as the process.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    if cpu.isa == "arm64":
        interpreter, given = arm64.python(folder, cpu.model)
        return [cpu.emulator, "-cpu", cpu.model, "-L", str(folder), str(interpreter)], {**env, **given}
    emulated = [cpu.emulator, "-cpu", cpu.model] if cpu.emulator else []
    return [*emulated, sys.executable], env


def logits(
    cpu: Cpu, model: Path, feeds: list[dict[str, NDArray[np.generic]]], session: Mapping[str, Any]
) -> tuple[NDArray[np.float32], str]:
    """The logits (examples, classes) of a model file on ``cpu``, and the version of onnxruntime that gave them.

    ``feeds`` has one example each: every input of the model, of shape (1, tokens). ``session`` holds options as in
    ``edgekd.session``. Raises ``BenchError`` if the process fails.
    """
    offsets = np.cumsum([0, *(next(iter(feed.values())).shape[1] for feed in feeds)])
    values = {name: np.concatenate([feed[name][0] for feed in feeds]) for name in feeds[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "root").mkdir()
        np.savez(folder / "inputs.npz", offsets=offsets, **values)  # type: ignore[arg-type]
        start, env = command(cpu, folder / "root")
        files = [str(path) for path in (CHILD, model.absolute(), folder / "inputs.npz", folder / "logits.npz")]
        try:
            done = subprocess.run(
                [*start, "-P", *files, json.dumps(dict(session))],
                env=env,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(
                f"the run on {cpu.model or cpu.isa} took over {TIMEOUT_S} s; take fewer --examples"
            ) from error
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-2:])[:400] or f"exit code {done.returncode}"
            raise BenchError(
                f"{model} does not run on {cpu.model or cpu.isa} ({cpu.emulator or 'this CPU'}): {last}; "
                "run the target again, or report it with this message"
            )
        with np.load(folder / "logits.npz", allow_pickle=False) as file:
            return file["logits"], done.stdout.split()[-1]
