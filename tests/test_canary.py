"""The canary: calls are timed again for what happened beside them, and never for being slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import chain, repeat

import numpy as np
import pytest

from edgekd.bench import canary
from edgekd.bench.canary import MARGIN, Canary

CALM, SLOW = 100, int(100 * MARGIN) + 1


@pytest.fixture
def singing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[int]], Canary]:
    """A canary whose loops take what the test says."""

    def make(loops: Iterable[int]) -> Canary:
        bird, scripted = Canary(), iter(loops)
        bird.best_ns = CALM
        monkeypatch.setattr(bird, "loop", lambda: next(scripted))
        return bird

    return make


def test_in_calm_every_call_is_timed_once(singing) -> None:
    seen: list[int] = []
    into = np.zeros(5, np.int64)
    assert singing(repeat(CALM)).time(seen.append, [1, 2, 3, 4, 5], into) == 0
    assert seen == [1, 2, 3, 4, 5] and (into > 0).all()


def test_a_slice_beside_a_slow_loop_is_timed_again(singing) -> None:
    seen: list[int] = []
    loops = chain([SLOW, SLOW, CALM, SLOW], repeat(CALM))  # waits twice, times, is disturbed, times again
    assert singing(loops).time(seen.append, [1, 2], np.zeros(2, np.int64)) == 0
    assert seen == [1, 2, 1, 2]


def test_slow_calls_in_calm_are_kept(singing) -> None:
    into = np.zeros(3, np.int64)
    seen: list[float] = []

    def call(seconds: float) -> None:
        seen.append(seconds)
        time.sleep(seconds)

    assert singing(repeat(CALM)).time(call, [0.001, 0.02, 0.001], into) == 0
    assert seen == [0.001, 0.02, 0.001] and into[1] >= 20_000_000


def test_calls_in_another_process_go_there_in_longer_slices(singing) -> None:
    class There:
        asked: list[int]

        def timed(self, inputs, into, limit_ns):
            self.asked = [*getattr(self, "asked", ()), limit_ns]
            into[:2] = 1
            return 2

    there = There()
    assert singing(repeat(CALM)).time(there, [1, 2, 3, 4], np.zeros(4, np.int64)) == 0
    assert there.asked == [canary.ELSEWHERE_NS] * 2


def test_without_end_to_the_disturbance_the_times_stand_and_are_counted(singing, monkeypatch) -> None:
    monkeypatch.setattr(canary, "PATIENCE_NS", 5_000_000)
    into = np.zeros(10, np.int64)
    assert singing(repeat(SLOW)).time(lambda _: None, list(range(10)), into) == 1
    assert (into > 0).all()


def test_the_quickest_loop_of_earlier_processes_counts() -> None:
    assert Canary(1).best_ns == 1 and not Canary(1).calm()
    bird = Canary()
    assert bird.loop() >= bird.best_ns
