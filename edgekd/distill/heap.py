"""The memory that a training step frees stays with the process: the next step needs as much."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MMAP = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of glibc's ``mallopt``."""
NEVER = 2**31 - 1
LARGEST = 2**25
"""Bytes; larger blocks glibc always maps and unmaps one by one."""


@contextmanager
def kept() -> Iterator[None]:
    """Inside, glibc keeps freed blocks of up to 32 MiB; afterwards what is free goes back to the kernel.

    By default it gives the top of the heap back once twice the largest block that was ever freed is free there, which
    is so after every backward pass, and the kernel clears thousands of pages anew in the next step. Quantized training
    needs the most memory, and loses the most. Nothing is done where the C library has no such options.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if libc is None or mallopt is None:
        yield
        return
    mallopt(MMAP, LARGEST)
    mallopt(TRIM, NEVER)
    try:
        yield
    finally:
        mallopt(TRIM, 2 * LARGEST)
        libc.malloc_trim(0)
