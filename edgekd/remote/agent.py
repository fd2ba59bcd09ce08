"""The device's end of a connection: answers requests until the other end is gone. Runs out of ``edgekd.pyz`` there.

A request is a line of JSON, ``{"do": ..., "bytes": n, ...}``, and n bytes behind it; so is an answer. What cannot be
done is answered with ``failed`` (a measurement's reason) or ``error``.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edgekd import machine, runtimes
from edgekd.bench.conditions import conditions
from edgekd.bench.spawn import ChildFailed, spawn
from edgekd.errors import EdgekdError

IDLE_S = 300
"""Who asks nothing for so long, and is not being answered, has gone without the connection noticing."""

CHUNK = 1 << 20
CHILDREN = ("edgekd.bench.child", "edgekd.bench.sustained")


def serve(stream: BinaryIO, folder: str, nonce: str) -> int:
    """Answer on standard output what is asked on ``stream``; ``folder`` is ours, ``nonce`` begins the first answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no answer
    answers.write(nonce.encode())
    answers.write(b"{}\n")
    answers.flush()
    while True:
        signal.alarm(IDLE_S)
        line = stream.readline()
        if not line:
            return 0
        request, payload = json.loads(line), b""
        try:
            answer, payload = _answer(request, stream, Path(folder))
        except ChildFailed as error:
            answer = {"failed": str(error)}
        except (EdgekdError, OSError) as error:
            answer = {"error": str(error)}
        answers.write(json.dumps({**answer, "bytes": len(payload)}).encode() + b"\n" + payload)
        answers.flush()


def _answer(request: dict[str, Any], stream: BinaryIO, folder: Path) -> tuple[dict[str, Any], bytes]:
    match request["do"]:
        case "describe":
            return describe(folder, request["runtimes"], request["threads"]), b""
        case "conditions":
            return conditions(), b""
        case "put":
            return _put(request, stream, folder), b""
        case "measure":
            return _measure(request, stream, folder)
        case other:
            return {"error": f"nobody here can {other!r}"}, b""


def describe(folder: Path, names: list[str], threads: list[int]) -> dict[str, Any]:
    """What ``measure`` and whoever reads the figures must know of this machine; nothing is imported for it."""
    return {
        "machine": machine.fingerprint(),
        "usable_threads": machine.usable_threads(),
        "cpus": {str(count): machine.pick_cpus(count) for count in map(machine.usable_threads, threads)},
        "lacking": [name for name in names if runtimes.availability(name) is not None],
        "versions": {"python": sys.version.split()[0], **runtimes.installed()},
        "executable": sys.executable,
        "free_bytes": shutil.disk_usage(folder).free,
        "conditions": conditions(),
    }


def _put(request: dict[str, Any], stream: BinaryIO, folder: Path) -> dict[str, Any]:
    """Write the bytes that follow to a file in the folder; its path is the answer."""
    path = folder / "files" / request["folder"] / request["name"]
    inside = path.resolve().is_relative_to(folder.resolve() / "files")
    trouble = "" if inside else "that is no name for a file"
    if inside:
        path.parent.mkdir(parents=True, exist_ok=True)
    left, seen = int(request["bytes"]), hashlib.sha256()
    with open(path if inside else os.devnull, "wb") as file:
        while left:
            signal.alarm(IDLE_S)
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise SystemExit(1)
            left -= len(chunk)
            seen.update(chunk)
            try:
                file.write(b"" if trouble else chunk)
            except OSError as error:  # what still comes belongs to this request, and must be read
                trouble = str(error)
    if not trouble and seen.hexdigest() != request["sha256"]:
        trouble = "it came damaged"
    return {"error": f"cannot write {path.name}: {trouble}"} if trouble else {"path": str(path)}


def _measure(request: dict[str, Any], stream: BinaryIO, folder: Path) -> tuple[dict[str, Any], bytes]:
    """Run the job in a child; its answer, and its samples as bytes."""
    if request["module"] not in CHILDREN:
        return {"error": f"{request['module']!r} measures nothing"}, b""
    samples = folder / "samples.npz"
    samples.unlink(missing_ok=True)
    signal.alarm(0)
    with _ending_with(stream):
        answer = spawn({**request["job"], "samples": str(samples)}, request["timeout_s"], request["module"])
    return {"answer": answer}, samples.read_bytes()


@contextmanager
def _ending_with(stream: BinaryIO) -> Iterator[None]:
    """While a child runs nothing is asked: what can be read then is the end of the connection, and ours.

    A thread sleeps on it, since the main one waits for the child; the signal ends that wait, and with it the child.
    """
    reader, writer = os.pipe()

    def watch() -> None:
        ready, _, _ = select.select([stream.fileno(), reader], [], [])
        if reader not in ready:
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.write(writer, b".")
        watcher.join()
        os.close(reader)
        os.close(writer)
