"""What training frees stays with the process while it trains, and goes back afterwards."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from edgekd.distill import heap

BLOCKS, BYTES = 12, 8 * 2**20


def used() -> int:
    """Pages that the kernel clears while as much memory as a training step needs is taken and freed again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(BYTES, dtype=torch.int8) for _ in range(BLOCKS)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_step_gets_no_new_pages_where_the_one_before_freed_as_many() -> None:
    with heap.kept():
        for _ in range(3):  # until the heap has found its form
            used()
        held, again = resident(), used()
    assert again < BLOCKS * BYTES / resource.getpagesize() / 20
    assert resident() < held - BLOCKS * BYTES / 2


def test_what_was_kept_goes_back_after_an_error_too() -> None:
    with pytest.raises(KeyError), heap.kept():
        used()
        held = resident()
        raise KeyError
    assert resident() < held - BLOCKS * BYTES / 2
