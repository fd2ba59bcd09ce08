"""Inference runtimes: one module each, imported only when it is used, and never beside torch in a timed process.

To add one: a module with ``load(path, threads)`` and ``version()`` (see ``Runtime``), and a line in ``RUNTIMES``; with
``convert(source, out, lengths)`` too (see ``edgekd.runtimes.converting``) where it does not read ``.onnx``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgekd.errors import BenchError, MissingDependencyError


class Session(Protocol):
    """A loaded model. ``inputs`` are the names that ``run`` wants."""

    inputs: tuple[str, ...]

    def run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Feed arrays of shape (batch, tokens) and return the logits, float, of shape (batch, classes)."""
        ...


class Runtime(Protocol):
    """What a runtime module is."""

    def load(self, path: Path, threads: int, session: Mapping[str, Any] = ..., /) -> Session:
        """Load the model file for exactly ``threads`` threads.

        ``session`` (see ``edgekd.session``) is given to ``ort_cpu`` alone, and only where options are set.
        """
        ...

    def version(self) -> str:
        """The version of the library, as its own package says."""
        ...


@dataclass(frozen=True)
class Entry:
    """Where a runtime's code is, which package it stands on, how that is installed, and which file it loads.

    ``converters`` are the packages that make this file of an ``.onnx``, if it is another; ``extra`` installs them.
    ``torch`` says that the package cannot be imported without torch.
    """

    module: str
    package: str
    install: str
    file: str = "model.onnx"
    converters: tuple[str, ...] = ()
    extra: str = ""
    torch: bool = False


RUNTIMES = {
    "ort_cpu": Entry("edgekd.runtimes.ort_cpu", "onnxruntime", "pip install onnxruntime"),
    "ort_mobile": Entry(
        "edgekd.runtimes.ort_mobile", "onnxruntime", "pip install onnxruntime", "model.ort", ("onnxruntime",)
    ),
    "openvino": Entry("edgekd.runtimes.openvino", "openvino", "pip install 'edgekd[openvino]'"),
    "litert": Entry(
        "edgekd.runtimes.litert",
        "ai_edge_litert",
        "pip install 'edgekd[litert]'",
        "model.tflite",
        ("litert_torch", "ai_edge_quantizer", "torch"),
        "pip install 'edgekd[litert-convert]'",
    ),
    "executorch": Entry(
        "edgekd.runtimes.executorch",
        "executorch",
        "pip install 'edgekd[executorch]'",
        "model.pte",
        ("executorch",),
        "pip install 'edgekd[executorch]'",
        torch=True,
    ),
}


def entry(name: str) -> Entry:
    """The entry of a runtime.

    Besides the names in ``RUNTIMES``, ``"package.module:name"`` and ``"/folder/file.py:name"`` say where an object with
    ``load`` and ``version`` is: how a benchmark or a test brings a runtime of its own. Raises ``BenchError``.
    """
    if name in RUNTIMES:
        return RUNTIMES[name]
    if ":" in name:
        return Entry(name, package="", install="")
    raise BenchError(f"unknown runtime {name!r}; choose one of {', '.join(RUNTIMES)}")


def availability(name: str) -> str | None:
    """``None`` if the runtime is installed, else the command that installs it. Imports nothing."""
    found = entry(name)
    return None if not found.package or importlib.util.find_spec(found.package) else found.install


def converters(name: str) -> dict[str, str] | None:
    """The versions of the packages that convert for a runtime; ``None`` where one is not installed. Imports nothing."""
    packages = entry(name).converters
    if not all(importlib.util.find_spec(package) for package in packages):
        return None
    return {package: importlib.metadata.version(package) for package in packages}


def installed() -> dict[str, str]:
    """The version of every installed runtime's package, read without importing it."""
    names = {found.package for found in RUNTIMES.values() if importlib.util.find_spec(found.package)}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def get(name: str) -> Runtime:
    """Import the runtime. Raises ``MissingDependencyError`` if it is not installed, ``BenchError`` if there is none."""
    command = availability(name)
    if command is not None:
        raise MissingDependencyError(f"the runtime {name} is not installed; install it with: {command}")
    place, _, attribute = entry(name).module.partition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise BenchError(f"runtime {name!r}: there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    runtime: Runtime = getattr(module, attribute) if attribute else module
    return runtime
