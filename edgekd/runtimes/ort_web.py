"""onnxruntime-web, which runs in browsers, in Node: WebAssembly with SIMD, one thread, the ``.onnx`` as it is shipped.

The model lies in a process of Node (``edgekd/web/worker.mjs``), which times its calls by its own clock and whose memory
and threads are those that count. Node compiles WebAssembly twice, the second time while it runs; here it is told to
begin with the second, so loading and the cold call hold that compiler's time, which in a browser is spread over the
first calls.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import proc, spawn
from edgekd.errors import BenchError
from edgekd.web import packages

Feeds = dict[str, NDArray[Any]]

CLOSING_S = 30.0
"""So long a browser may take to end and its profile to be removed; then both end with this process."""


class Worker:
    """A process of Node that serves one model, there or (``where`` is ``chromium``) in a page of that browser.

    ``pid`` is the process that computes. A browser's many processes have the CPUs of the run that began this one, as a
    user's have: on the one CPU that is the page's they would wait for each other.
    """

    def __init__(self, where: str) -> None:
        browser = [shutil.which("chromium") or "chromium"] if where == "chromium" else []
        program = [*packages.node(), str(packages.HERE / "worker.mjs"), where, str(packages.folder()), *browser]
        pinned = browser and hasattr(os, "sched_setaffinity")
        self._where = where
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=packages.environment(),
            preexec_fn=functools.partial(_begin, os.getpid(), os.sched_getaffinity(os.getppid()) if pinned else ()),
        )
        atexit.register(self._close)
        started = self.ask("start")
        self.version, self.pid = str(started["version"]), int(started["pid"])
        if pinned:
            os.sched_setaffinity(self.pid, os.sched_getaffinity(0))  # of the page, the thread that computes

    def _close(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=CLOSING_S)

    def ask(self, method: str, *given: Any) -> Any:
        """The value that the method (see ``worker.mjs``) gives. Raises ``BenchError`` with the worker's own reason."""
        out, back = self._process.stdin, self._process.stdout
        assert out is not None and back is not None
        try:
            out.write(json.dumps([method, *given]).encode() + b"\n")
            out.flush()
            answer = json.loads(back.readline())
        except (OSError, ValueError):
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
            fatal = next((line for line in said.splitlines() if line.startswith("FATAL ERROR")), said)
            raise BenchError(f"onnxruntime-web in {self._where}: {spawn.reason(code, fatal)}") from None
        if "error" in answer:
            raise BenchError(f"onnxruntime-web in {self._where}: {answer['error']}")
        return answer["value"]


def _begin(parent: int, cpus: Iterable[int]) -> None:
    proc.die_with_parent(parent, signal.SIGTERM)
    if cpus:
        os.sched_setaffinity(0, cpus)


class Run:
    """Calls of the model. ``timed`` is what ``bench.stopwatch`` asks for where a call has a clock of its own."""

    def __init__(self, worker: Worker, numbers: dict[int, int], nothing: bool = False) -> None:
        self._worker, self._numbers, self._nothing = worker, numbers, nothing

    def __call__(self, feeds: Feeds) -> NDArray[Any]:
        """The logits of one call."""
        found = self._worker.ask("run", {name: array.tolist() for name, array in feeds.items()})
        return np.frombuffer(base64.b64decode(found["data"]), np.float32).reshape(found["shape"])

    def timed(self, prepared: Sequence[Feeds], into: NDArray[np.int64], limit_ns: int | None) -> int:
        """Time calls one by one into ``into`` (nanoseconds) until ``limit_ns`` are over; returns how many there were.

        ``prepared`` are of the caller's own list, which outlives this: each is sent once.
        """
        new = [feeds for feeds in prepared if id(feeds) not in self._numbers]
        if new:
            self._worker.ask("keep", [{name: array.tolist() for name, array in feeds.items()} for feeds in new])
            self._numbers.update({id(feeds): len(self._numbers) + place for place, feeds in enumerate(new)})
        numbers = [self._numbers[id(feeds)] for feeds in prepared]
        took = self._worker.ask("time", numbers, None if limit_ns is None else limit_ns / 1e6, self._nothing)
        into[: len(took)] = np.asarray(took) * 1e6
        return len(took)


class WebSession:
    """The model of a worker, until another is loaded."""

    def __init__(self, worker: Worker, path: Path) -> None:
        self.inputs = tuple(worker.ask("open", str(path)))
        sent: dict[int, int] = {}  # by either: what is timed has been sent when nothing was
        self.run, self.nothing = Run(worker, sent), Run(worker, sent, nothing=True)


class Web:
    """The runtime, in Node or in Chromium."""

    def __init__(self, where: str) -> None:
        self._worker: Callable[[], Worker] = functools.cache(functools.partial(Worker, where))

    def load(self, path: Path, threads: int) -> WebSession:
        """Open the model, for one thread: pages have no more unless their server sends headers that most do not."""
        if threads != 1:
            raise BenchError(f"onnxruntime-web is measured with one thread, and {threads} are asked for")
        return WebSession(self._worker(), path)

    def process(self) -> int:
        """The process that computes, with the runtime loaded and no model."""
        return self._worker().pid

    def version(self) -> str:
        """The version of the onnxruntime-web package, and what compiles its WebAssembly."""
        return self._worker().version


_web = Web("node")
load, process, version = _web.load, _web.process, _web.version
