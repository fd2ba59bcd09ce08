"""What a browser downloads: a student's file and the runtime, as they are and compressed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgekd import store
from edgekd.errors import BenchError
from edgekd.web import packages

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of onnxruntime-web that a page needs."""

Sizes = dict[str, int]


def runtime_files() -> list[Path]:
    """Where they are."""
    return [packages.folder() / "node_modules/onnxruntime-web/dist" / name for name in RUNTIME]


def sizes(files: Sequence[Path]) -> Sizes:
    """``bytes``, ``gzip_bytes`` and ``brotli_bytes`` of all files together, each compressed by itself, at best.

    Raises ``BenchError`` where one cannot be read.
    """
    command = [*packages.node(), str(packages.HERE / "compress.mjs"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=packages.environment(), check=False)
    if done.returncode:
        raise BenchError(f"{files[0].name} and what belongs to it cannot be compressed: {done.stderr.strip()[-300:]}")
    found: Sizes = json.loads(done.stdout)
    return found


def runtime() -> Sizes:
    """The same of the runtime; found once, and kept beside it."""
    kept = packages.folder() / "download.json"
    if not kept.is_file():
        store.write_json(kept, sizes(runtime_files()))
    found: Sizes = store.read_json(kept)
    return found
