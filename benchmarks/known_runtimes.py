"""Runtimes whose truth is known beforehand, to hold the harness against. Named in a job as ``<this file>:known``.

Standard library and numpy only: the measuring child imports this file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PAGE = 4096
NO_LOGITS = np.zeros((1, 2), np.float32)


class Behaviour:
    """A session that does what the JSON in its "model" file says; every key may be left out.

    While loading: ``touch_mib`` of memory are touched, ``print`` is written to the standard output past Python, a
    module named ``imports`` appears, the process dies by the signal ``die``. In a call: ``spin_ms`` are spent
    computing (after sleeping ``sleep_ms`` of them), ``fail`` is raised, ``hang`` never returns. The logits name the
    class that is the sum of the tokens modulo ``classes``.
    """

    inputs = ("input_ids",)

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.spin_ns, self.sleep_s = int(told.get("spin_ms", 0) * 1e6), told.get("sleep_ms", 0) / 1000
        self.classes = np.eye(told.get("classes", 2), dtype=np.float32)
        os.write(1, told.get("print", "").encode())
        if "imports" in told:
            sys.modules.setdefault(told["imports"], ModuleType(told["imports"]))
        if "die" in told:
            os.kill(os.getpid(), signal.Signals[told["die"]])
        self.memory = bytearray(int(told.get("touch_mib", 0) * 2**20))
        for start in range(0, len(self.memory), PAGE):
            self.memory[start] = 1

    def run(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """One call, (batch, tokens) to (batch, classes)."""
        end = time.perf_counter_ns() + self.spin_ns
        if "fail" in self.told:
            raise RuntimeError(self.told["fail"])
        if "hang" in self.told:
            time.sleep(3600)
        if self.sleep_s:
            time.sleep(self.sleep_s)
        logits = self.classes[feeds["input_ids"].sum(axis=1) % len(self.classes)]
        while time.perf_counter_ns() < end:
            pass
        return logits


class Null:
    """A session that does nothing: what is left is the harness."""

    inputs = ("input_ids",)

    def run(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """One call."""
        return NO_LOGITS


class Slowed:
    """A session of onnxruntime whose calls take longer by a known share, spent computing."""

    def __init__(self, session: Any, share: float) -> None:
        self.inputs, self._session, self._share = session.inputs, session, share

    def run(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """One call, and then the share of its time again."""
        started = time.perf_counter_ns()
        logits = self._session.run(feeds)
        now = time.perf_counter_ns()
        end = now + (now - started) * self._share
        while time.perf_counter_ns() < end:
            pass
        return logits


class known:
    """The runtime of ``Behaviour``."""

    @staticmethod
    def load(path: Path, threads: int) -> Behaviour:
        """Do what the file says."""
        return Behaviour(json.loads(path.read_text()))

    @staticmethod
    def version() -> str:
        """No library stands behind it."""
        return "known"


class null(known):
    """The runtime of ``Null``."""

    @staticmethod
    def load(path: Path, threads: int) -> Null:  # type: ignore[override]
        """Nothing to load."""
        return Null()


class ort_slowed:
    """onnxruntime, slowed by the share in ``slowdown.txt`` beside the model (no such file: not at all)."""

    @staticmethod
    def load(path: Path, threads: int) -> Slowed:
        """Load the model with onnxruntime."""
        from edgekd.runtimes import ort_cpu

        told = path.with_name("slowdown.txt")
        return Slowed(ort_cpu.load(path, threads), float(told.read_text()) if told.exists() else 0.0)

    @staticmethod
    def version() -> str:
        """No library stands behind it."""
        return "slowed"
