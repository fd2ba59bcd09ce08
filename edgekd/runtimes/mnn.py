"""MNN on the CPU: a ``.mnn`` made of the shipped ``.onnx``, for any length.

Matrices that the graph holds in int8 are the very same integers in the file; MNN multiplies in float32 all the same, by
the numbers that they stand for, and leaves tables in float32.

The converter is called without its command line's wrapper, which installs a package and posts what was converted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import MNN
import numpy as np
from MNN import expr, nn
from numpy.typing import NDArray

from edgekd.errors import ExportError

CONFIG = {"backend": "CPU", "precision": "high"}
"""``high`` is float32."""


class MnnSession:
    """One loaded module."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.inputs = tuple(module.get_info()["inputNames"])

    def run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """The logits of a batch."""
        arrays = [feeds[name].astype(np.int32) for name in self.inputs]
        given = [expr.const(array, list(array.shape), expr.NCHW, expr.int) for array in arrays]
        logits: NDArray[Any] = np.array(expr.convert(self._module.forward(given)[0], expr.NCHW).read())
        return logits


def load(path: Path, threads: int) -> MnnSession:
    """Open the model for ``threads`` threads and float32 arithmetic."""
    manager = nn.create_runtime_manager(({**CONFIG, "numThread": threads},))
    return MnnSession(nn.load_module_from_file(str(path), [], ["logits"], runtime_manager=manager))


def version() -> str:
    """The version of the MNN package."""
    return str(MNN.version())


# --------------------------------------------------------------------------------------------------------- conversion


QUANTIZED = ("--weightQuantBits", "8", "--weightQuantAsymmetric")
"""What finds the grid again that the rows of a matrix lie on, if one of a row's integers is the greatest there is."""


def convert(source: Path, out: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Write ``out`` from the ``.onnx`` at ``source``; any length fits.

    Returns ``int8`` (nothing) and ``float``, the names of the matrices by what they are multiplied in;
    ``int8_weights``, how many of them are stored as the graph's integers, since whatever the converter would round
    anew stays in float32; and ``difference`` (``converting.difference``).
    Raises ``ExportError`` where the file computes something else.
    """
    from edgekd.onnxio import bridge, files, passes
    from edgekd.runtimes import converting

    model = files.read(source)
    folded = passes.apply(model, passes.FOLDED)
    files.write(folded, source)
    known = bridge.stored(model)
    weights, exact = bridge.multiplied(folded, known), set[str]()
    plan = out.with_suffix(".json")
    planned = ("--compressionParamsFile", str(plan)) if known else ()
    if known:
        _mnnconvert(source, out, *QUANTIZED, *planned)  # which writes what it has done
        content = out.read_bytes()
        exact = {w.name for w in known.values() if (w.integers.view(np.uint8) ^ 0x80).tobytes() in content}
        _keep(plan, {output for output, name in weights.items() if name in exact})
    _mnnconvert(source, out, *planned)
    plan.unlink(missing_ok=True)
    return {
        "int8": [],
        "float": sorted(set(weights.values())),
        "int8_weights": len(exact.intersection(weights.values())),
        "difference": converting.difference(model, load(out, 1), lengths, "MNN"),
    }


def _keep(plan: Path, nodes: set[str]) -> None:
    """Leave of the converter's plan what it does to the weights of ``nodes``, which it calls by what they give."""
    told = json.loads(plan.read_text(encoding="utf-8"))
    for algorithm in told["algo"]:
        layers = algorithm["quantParams"]["layer"]
        layers[:] = [layer for layer in layers if layer["opName"].removesuffix("__matmul_converted") in nodes]
    plan.write_text(json.dumps(told), encoding="utf-8")


def _mnnconvert(source: Path, out: Path, *options: str) -> None:
    import _tools  # what the wheel calls its converter

    out.unlink(missing_ok=True)
    of = ("--framework", "ONNX", "--modelFile", str(source), "--MNNModel", str(out), "--bizCode", "edgekd")
    _tools.mnnconvert(["mnnconvert", *of, "--useOriginRNNImpl", *options])
    if not out.is_file():
        raise ExportError("MNN's converter wrote nothing")
