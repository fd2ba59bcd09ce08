"""``edgekd.pyz``: the modules of this very edgekd that measure, and nothing else, in one file for a device."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

import edgekd

MODULES = (
    *("__init__.py", "devices.py", "errors.py", "machine.py", "session.py"),
    *("bench/__init__.py", "bench/canary.py", "bench/child.py", "bench/conditions.py", "bench/proc.py"),
    *("bench/spawn.py", "bench/stopwatch.py", "bench/sustained.py", "bench/workloads.py"),
    *("remote/__init__.py", "remote/agent.py", "runtimes/*.py"),
)
"""Standard library and numpy only, but for the runtimes, which are imported when they are used."""


@cache
def archive() -> bytes:
    """The zip file, the same bytes for the same sources."""
    root, buffer = Path(edgekd.__file__).parent, io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for pattern in MODULES for path in root.glob(pattern)):
            file.writestr(zipfile.ZipInfo(f"edgekd/{path.relative_to(root).as_posix()}"), path.read_bytes())
    return buffer.getvalue()


def boot() -> bytes:
    """The program that a device runs first."""
    return Path(__file__).with_name("boot.py").read_bytes()
