"""ncnn on the CPU: a ``.param`` with the graph and a ``.bin`` with its weights, made of the shipped ``.onnx``.

Everything is float32 there: what the graph holds in int8 are the numbers that the integers stand for. Any length fits.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
from numpy.typing import NDArray

from edgekd.errors import BenchError, ExportError
from edgekd.runtimes import RUNTIMES

REDUCED = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")
"""What would hold or compute numbers in half of their bits."""
MASK = "attention_mask"
"""The input that is read as floats: ncnn casts no integers."""


class NcnnSession:
    """One loaded network."""

    def __init__(self, net: Any) -> None:
        self._net = net
        self.inputs = tuple(net.input_names())

    def run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """The logits of one example; raises ``BenchError`` for more."""
        if (count := len(feeds[self.inputs[0]])) > 1:
            raise BenchError(f"ncnn takes one example at a time, and these are {count}")
        with self._net.create_extractor() as extractor:
            for name in self.inputs:
                array = feeds[name][0].astype(np.float32 if name == MASK else np.int32)
                extractor.input(name, ncnn.Mat(array).clone())  # which would borrow the array's memory
            _, logits = extractor.extract("logits")
            found: NDArray[Any] = np.array(logits)[None]
        return found


def load(path: Path, threads: int) -> NcnnSession:
    """Open the model for ``threads`` threads and float32 arithmetic."""
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in REDUCED:
        setattr(net.opt, name, False)
    if net.load_param(str(path)) or net.load_model(str(path.with_name(RUNTIMES["ncnn"].weights))):
        raise BenchError(f"ncnn cannot read {path}")
    return NcnnSession(net)


def version() -> str:
    """The version of the ncnn package."""
    return str(ncnn.__version__)


# --------------------------------------------------------------------------------------------------------- conversion


def convert(source: Path, out: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Write ``out`` and its weights from the ``.onnx`` at ``source``, for one example of any length.

    Returns ``int8`` (nothing) and ``float``, the names of the matrices, and ``difference``
    (``converting.difference``). Raises ``ExportError`` for a graph without a counterpart, and where the files compute
    something else.
    """
    from edgekd.onnxio import bridge, files, passes
    from edgekd.runtimes import converting

    model = files.read(source)
    folded = passes.apply(model, passes.FOLDED)
    graph = bridge.Graph(folded).eval()
    graph.operators = {**graph.operators, "Reshape": partial(_reshape, graph.operators["Reshape"])}
    _pnnx(graph, source.parent)
    names = {f"in{place}": name for place, name in enumerate(graph.inputs)} | {"out0": "logits"}
    text = source.with_name("model.ncnn.param").read_text(encoding="utf-8")
    out.write_text(re.sub(r"(?<=\s)(in\d+|out0)(?=\s)", lambda one: names.get(one[0], one[0]), text), encoding="utf-8")
    source.with_name("model.ncnn.bin").rename(out.with_name(RUNTIMES["ncnn"].weights))
    weights = bridge.multiplied(folded, bridge.stored(model))
    return {
        "int8": [],
        "float": sorted(set(weights.values())),
        "difference": converting.difference(model, load(out, 1), lengths, "ncnn"),
    }


def _reshape(reshape: Callable[..., Any], of: Mapping[str, Any], x: Any, shape: Any) -> Any:
    """``Reshape``, but the tokens of an example, one below another, stay one example: pnnx takes rows for a batch."""
    one_below_another = len(shape) == 2 and shape[0] == -1
    return reshape(of, x, [1, *shape] if one_below_another else shape)


def _pnnx(graph: Any, folder: Path) -> None:
    """Write ``model.ncnn.param`` and ``.bin`` of a ``bridge.Graph``."""
    import pnnx
    import torch

    options = []
    for option, length in (("input2", 48), ("input", 16)):  # two tell which dimensions are open
        arrays = {name: np.zeros((1, length), np.float32 if name == MASK else np.int64) for name in graph.inputs}
        for name, array in arrays.items():
            np.save(folder / f"{name}{length}.npy", array)
        options.append(f"{option}={','.join(f'{name}{length}.npy' for name in arrays)}")
    trace: Any = torch.jit.trace
    given = tuple(torch.from_numpy(array) for array in arrays.values())
    trace(graph, given, check_trace=False).save(str(folder / "model.pt"))
    command = [pnnx.EXEC_PATH, "model.pt", *options, "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode or not all((folder / f"model.ncnn.{name}").is_file() for name in ("param", "bin")):
        raise ExportError(f"pnnx wrote nothing for ncnn: {' '.join(done.stderr.split())[-300:]}")
