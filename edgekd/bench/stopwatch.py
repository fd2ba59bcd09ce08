"""Time calls one by one: by this process's clock, or by that of the process in which they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def timed(
    call: Callable[[Any], object], inputs: Sequence[Any], into: NDArray[np.int64], limit_ns: int | None = None
) -> int:
    """Time ``call`` on each of ``inputs`` into ``into`` (nanoseconds), until ``limit_ns`` are over; return how many.

    A ``call`` with a method ``timed(inputs, into, limit_ns)`` is one into another process, which has a clock of its
    own: what it takes to reach that process is not the model's time.
    """
    own: Callable[..., int] | None = getattr(call, "timed", None)
    if own is not None:
        return own(inputs, into, limit_ns)
    clock = time.perf_counter_ns
    started = clock()
    end = started + (limit_ns if limit_ns is not None else 2**62)
    for index, given in enumerate(inputs):
        before = clock()
        call(given)
        now = clock()
        into[index] = now - before
        if now >= end:
            return index + 1
    return len(inputs)
