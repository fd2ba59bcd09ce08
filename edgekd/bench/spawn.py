"""Start a measuring child and wait for its answer. Standard library only: this runs on devices too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import edgekd
from edgekd.errors import BenchError

CHILD = "edgekd.bench.child"


class ChildFailed(Exception):
    """The child crashed, gave up or took too long; the message is the reason for the row."""


def spawn(job: dict[str, Any], timeout_s: float, module: str = CHILD) -> dict[str, Any]:
    """Run the job in a fresh process of ``module`` and return its answer; the samples are where the job wants them.

    Raises ``ChildFailed``, and ``BenchError`` where no process can be started at all. Whatever else is raised while
    the child runs (ctrl-C, a signal) ends it first.
    """
    command = [sys.executable, "-P", "-m", module]
    text, env = json.dumps({**job, "parent": os.getpid()}).encode(), environment(job["threads"])
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=timeout_s, env=env)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"took longer than {timeout_s:.0f} s") from None
    except OSError as error:
        raise BenchError(f"cannot start {sys.executable}: {error}") from error
    if done.returncode != 0:
        raise ChildFailed(reason(done.returncode, done.stderr.decode(errors="replace")))
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise ChildFailed(f"ended without an answer ({error})") from None
    return answer


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
