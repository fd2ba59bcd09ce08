"""Time calls while the core is ours: a fixed piece of work tells when somebody unseen is using it too.

A guest on a cloud host shares its cores with strangers. While the other hyperthread of the core is busy everything here
runs up to 1.7 times as long, for tens of milliseconds at a time, and no counter of the guest shows it. So between the
calls the same little loop is run; when it takes longer than its best, what was timed beside it is timed again. The
loop decides, never the time of the calls themselves, and it is the same for every artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench.stopwatch import timed

LOOPS = 5000
"""Additions in the interpreter; about a tenth of a millisecond."""

MARGIN = 1.35
"""A loop slower than this times its best was disturbed."""

SLICE_NS = 4_000_000
"""Calls are timed in slices of about this length, each between two loops."""

ELSEWHERE_NS = 60_000_000
"""And in slices of this length where another process runs them: the way there and back is work beside the model's."""

PATIENCE_NS = 1_500_000_000
"""So much time one timing may spend on waiting and on slices that were disturbed; then it takes what comes."""


class Canary:
    """``best_ns`` is the quickest loop ever seen, here or (``best_ns`` given) by the processes before this one."""

    def __init__(self, best_ns: int | None = None) -> None:
        self.best_ns = best_ns or 2**62
        for _ in range(100):
            self.loop()

    def loop(self) -> int:
        """Run the loop; returns its nanoseconds."""
        started, total = time.perf_counter_ns(), 0
        for number in range(LOOPS):
            total += number
        took = time.perf_counter_ns() - started
        self.best_ns = min(self.best_ns, took)
        return took

    def calm(self) -> bool:
        """Whether the loop now takes about as long as it should."""
        return self.loop() <= MARGIN * self.best_ns

    def time(self, call: Callable[[Any], object], inputs: list[Any], into: NDArray[np.int64]) -> float:
        """Time ``call`` on each of ``inputs`` into ``into`` (nanoseconds), in calm as far as patience goes.

        Returns the share of the calls (0 to 1) whose time stands although the loops beside them were slow.
        """
        clock = time.perf_counter_ns
        slice_ns = ELSEWHERE_NS if hasattr(call, "timed") else SLICE_NS
        patience, disturbed, index = PATIENCE_NS, 0, 0
        while index < len(inputs):
            waiting = clock()
            while patience > clock() - waiting and not self.calm():
                pass
            started = clock()
            patience -= started - waiting
            end = index + timed(call, inputs[index:], into[index:], slice_ns)
            if not self.calm():
                patience -= clock() - started
                if patience > 0:
                    continue
                disturbed += end - index
            index = end
        return disturbed / len(inputs)
