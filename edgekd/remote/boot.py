"""What a device runs first: ``python3 -c`` executes this text, which comes over standard input (``BOOT`` in ``agent``).

It makes a folder of its own under the system's temporary one, puts the harness there, serves, and removes the folder
whatever happens: the end, an error, a signal, a connection that breaks. It runs on Pythons that are too old for us
(3.7), so that these are told so, and imports nothing of ours before that.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
from typing import Any, BinaryIO

PREFIX = "edgekd-bench-"
LOCK = "lock"
OLDEST = (3, 11)
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM)


def main(stream: BinaryIO) -> int:
    """Serve one connection; ``stream`` is the standard input behind this text."""
    head = json.loads(stream.readline())
    unfit = _unfit(head["folder"])
    if unfit:
        sys.stdout.write(head["nonce"] + json.dumps(unfit) + "\n")
        return 1
    for number in SIGNALS:
        signal.signal(number, _stop)
    above = head["folder"] or tempfile.gettempdir()
    _sweep(above)
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=above)
    try:
        lock = os.open(os.path.join(folder, LOCK), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        harness = os.path.join(folder, "edgekd.pyz")
        with open(harness, "wb") as file:
            file.write(stream.read(head["bytes"]))
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.path.insert(0, harness)
        from edgekd.remote import agent

        return agent.serve(stream, folder, head["nonce"])
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)


def _unfit(folder: str | None) -> dict[str, Any] | None:
    """Why this machine cannot measure, or None."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        return {"unfit": f"{sys.executable} is Python {found}; 3.11 or later is needed"}
    if not sys.platform.startswith("linux"):
        return {"unfit": f"it runs {sys.platform}; only Linux can be measured on"}
    if folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        return {"unfit": f"there is no folder {folder} that one may write to"}
    import importlib.util

    if importlib.util.find_spec("numpy") is None:
        return {"missing": "numpy", "executable": sys.executable}
    return None


def _sweep(above: str) -> None:
    """Remove the folders of earlier connections that died without a chance to: nobody holds their lock any more."""
    for name in os.listdir(above):
        if not name.startswith(PREFIX):
            continue
        folder = os.path.join(above, name)
        try:
            if os.lstat(folder).st_uid != os.getuid():
                continue
            lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # another's, or gone meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its connection lives
            pass
        finally:
            os.close(lock)


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer))
