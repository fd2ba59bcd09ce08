"""Have pip download one wheel, and show how much of it has come."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from edgekd.progress import Advance

Bar = Callable[..., AbstractContextManager[Advance]]
"""``Progress.bar``."""

MIB = 2**20
POLL_SECONDS = 0.2

_ANNOUNCED = re.compile(r"Downloading \S+\.whl\s+\(([\d.]+)\s(bytes|kB|MB)\)")  # not the .whl.metadata before it
_UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6}


def pip_download(
    requirement: str, folder: Path, bar: Bar | None = None, options: Sequence[str] = ()
) -> tuple[int, str]:
    """Download the wheel of ``package==version``, and nothing else, into ``folder``: pip's exit status and its words.

    ``options`` are further ones of ``pip download``, such as the platform that the wheel is for.

    pip's own bar needs a terminal and says nothing in a log; so ``bar`` shows the growth of its temporary file, which
    lies in ``folder`` too, and the size that pip announces.
    """
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += [
        "--ignore-requires-python",
        "--no-input",
        "--progress-bar=off",
        "--dest",
        str(folder),
        *options,
        requirement,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "pip.log"
    with (
        said.open("w") as stream,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(folder)},
        ) as pip,
    ):
        try:
            total = None
            while bar and total is None and _runs(pip):
                total = _announced(said)
            if bar and total is not None:
                _show(pip, folder, f"downloading {requirement}", total, bar)
            pip.wait()
        except BaseException:
            pip.kill()
            raise
    return pip.returncode, said.read_text(encoding="utf-8", errors="replace")


def _show(pip: subprocess.Popen[bytes], folder: Path, name: str, total: int, bar: Bar) -> None:
    shown = 0
    with bar(name, total=max(1, round(total / MIB)), unit="MiB") as advance:
        while _runs(pip):
            arrived = _arrived(folder) // MIB
            advance(arrived - shown)
            shown = arrived


def _runs(pip: subprocess.Popen[bytes]) -> bool:
    """Wait a moment; whether it still runs then."""
    try:
        pip.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _announced(said: Path) -> int | None:
    """The wheel's size in bytes, roughly, once pip has named it."""
    found = _ANNOUNCED.search(said.read_text(encoding="utf-8", errors="replace"))
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def _arrived(folder: Path) -> int:
    """The bytes of the wheel that are there."""
    sizes = [0]
    for path in folder.rglob("*.whl"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # pip has moved it meanwhile
            continue
    return max(sizes)
