"""Inference runtimes: one module each, imported only when it is used, and never beside torch in a timed process.

To add one: a module with ``load(path, threads)`` and ``version()`` (see ``Runtime``), and a line in ``RUNTIMES``; with
``convert(source, out, lengths)`` too (see ``edgekd.runtimes.converting``) where it does not read ``.onnx``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgekd import machine
from edgekd.errors import BenchError, MissingDependencyError


class Session(Protocol):
    """A loaded model. ``inputs`` are the names that ``run`` wants.

    One that knows has ``executed()`` too: the names of the multiplications done in ``int8`` and in ``float``.
    """

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
    ``flags``: it is for CPUs that have one of these.
    ``programs`` are those that a runtime of other language needs: its package is then one of npm's, in edgekd's cache
    (``edgekd.web.packages``). ``warmup`` is where it departs from ``child.WARMUP``.
    ``torch`` says that the package cannot be imported without torch. ``weights`` lie in a file of their own, beside
    the one with the graph.
    """

    module: str
    package: str
    install: str
    file: str = "model.onnx"
    converters: tuple[str, ...] = ()
    extra: str = ""
    flags: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    warmup: Mapping[str, float] = field(default_factory=dict, hash=False)
    torch: bool = False
    weights: str = ""


INSTALL_WEB = "edgekd doctor --install ort_web"

RUNTIMES = {
    "ort_cpu": Entry("edgekd.runtimes.ort_cpu", "onnxruntime", "pip install onnxruntime"),
    "ort_mobile": Entry(
        "edgekd.runtimes.ort_mobile", "onnxruntime", "pip install onnxruntime", "model.ort", ("onnxruntime",)
    ),
    "openvino": Entry("edgekd.runtimes.openvino", "openvino", "pip install 'edgekd[openvino]'"),
    "openvino_bf16": Entry(
        "edgekd.runtimes.openvino_bf16", "openvino", "pip install 'edgekd[openvino]'", flags=machine.BF16
    ),
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
    "mnn": Entry(
        "edgekd.runtimes.mnn", "MNN", "pip install 'edgekd[mnn]'", "model.mnn", ("MNN",), "pip install 'edgekd[mnn]'"
    ),
    "ncnn": Entry(
        "edgekd.runtimes.ncnn",
        "ncnn",
        "pip install 'edgekd[ncnn]'",
        "model.ncnn.param",
        ("pnnx", "torch"),
        "pip install 'edgekd[ncnn]'",
        weights="model.ncnn.bin",
    ),
    "ort_web": Entry("edgekd.runtimes.ort_web", "onnxruntime-web", INSTALL_WEB, programs=("node",)),
    "ort_web_chromium": Entry(
        "edgekd.runtimes.ort_web_chromium",
        "onnxruntime-web",
        INSTALL_WEB,
        programs=("node", "chromium"),
        warmup={"passes": 10, "limit_s": 30.0},  # a page begins in the compiler's slow tier, and stays for a while
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
    """``None`` if the runtime can be used here, else what it lacks: the command that installs it. Imports nothing."""
    found = entry(name)
    if found.flags and machine.cpu_flags().isdisjoint(found.flags):
        return f"needs a CPU with {' or '.join(found.flags)}"
    if found.programs:
        npm = _npm()
        return npm.missing(found.programs) if npm else found.install
    return None if not found.package or importlib.util.find_spec(found.package) else found.install


def converters(name: str) -> dict[str, str] | None:
    """The versions of the packages that convert for a runtime; ``None`` where one is not installed. Imports nothing."""
    needed = entry(name).converters
    if not all(importlib.util.find_spec(package) for package in needed):
        return None
    return {package: importlib.metadata.version(package) for package in needed}


def installed() -> dict[str, str]:
    """The version of every installed runtime's package, read without importing it."""
    names = {found.package for found in RUNTIMES.values() if not found.programs}
    ours = {name: importlib.metadata.version(name) for name in sorted(names) if importlib.util.find_spec(name)}
    webs = {found.package for name, found in RUNTIMES.items() if found.programs and availability(name) is None}
    return ours | {name: _npm().versions()[name] for name in webs}


def _npm() -> Any:
    """``edgekd.web.packages``; ``None`` on a device to which these modules were carried without it."""
    return importlib.import_module("edgekd.web.packages") if importlib.util.find_spec("edgekd.web") else None


def get(name: str) -> Runtime:
    """Import the runtime. Raises ``MissingDependencyError`` if it is not installed, ``BenchError`` if there is none."""
    command = availability(name)
    if command is not None:
        raise MissingDependencyError(f"the runtime {name} cannot be used here: {command}")
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
