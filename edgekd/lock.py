"""A folder's lock: one process at a time works in it, and the kernel frees it when that process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edgekd.errors import StoreError

LOCK = ".lock"


def take(folder: Path) -> int:
    """Make ``folder`` if need be, lock it against every other process, and return the descriptor that holds the lock.

    Raises ``StoreError`` if another process holds it, and ``OSError`` if the folder cannot be made or written to.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            if folder.parent.is_dir():  # renamed between the two lines: another run has just finished it
                continue
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"another run (process {holder}) is writing {folder.name}; wait until it ends, or use another --store"
            ) from None
        try:
            current = os.stat(folder / LOCK)
        except FileNotFoundError:
            current = None
        if current is None or not os.path.samestat(current, os.fstat(descriptor)):
            os.close(descriptor)  # the folder that we locked has been renamed or removed meanwhile
            continue
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor
