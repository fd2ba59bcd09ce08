"""ExecuTorch on the CPU (XNNPACK delegate): a ``.pte`` made of the shipped ``.onnx``, for one example at a time.

Weights that the graph holds in int8 are the very same integers here, under the same scales. The delegate quantizes what
they are multiplied with by each row's own range, and is shown the ends of the graph's (``range_ends``): so a student
with fixed ranges computes with the integers that it was trained with. The package imports torch.
"""

from __future__ import annotations

import collections
import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.bench import workloads
from edgekd.errors import BenchError, ExportError


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on standard error: the library tells there which files of other systems it has not found."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


with _silence():
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

INPUTS = "inputs"
"""The method that tells the names of the inputs, which the format has none of."""


class ExecuTorchSession:
    """One loaded program."""

    def __init__(self, program: Any) -> None:
        self._program, self._method = program, program.load_method("forward")
        self.inputs = tuple(program.load_method(INPUTS).execute([])[0].split())
        self._limit = self._method.metadata.input_tensor_meta(0).sizes()[1]

    def run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """The logits of one example. Raises ``BenchError`` where it is longer than the file allows."""
        tokens = feeds[self.inputs[0]].shape[1]
        if tokens > self._limit:
            raise BenchError(f"{tokens} tokens, and the file goes up to {self._limit}")
        found: NDArray[Any] = self._method.execute([torch.from_numpy(feeds[name]) for name in self.inputs])[0].numpy()
        return found


def load(path: Path, threads: int) -> ExecuTorchSession:
    """Open the model for ``threads`` threads."""
    with _silence():
        portable_lib._unsafe_reset_threadpool(threads)
        return ExecuTorchSession(Runtime.get().load_program(path))


def version() -> str:
    """The version of the executorch package."""
    from importlib import metadata

    return metadata.version("executorch")


# --------------------------------------------------------------------------------------------------------- conversion


def convert(source: Path, out: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Write ``out`` from the ``.onnx`` at ``source``, for one example of up to the greatest of ``lengths`` tokens.

    Returns ``int8`` and ``float``, the names of the matrices of each kind; ``delegates``, how many parts XNNPACK
    computes; ``delegated_nodes`` and ``delegated_time``, its shares of the operators and of one call; ``outside``, how
    often it leaves which operator to others; ``difference`` (``converting.difference``).
    Raises ``ExportError`` for a graph without a counterpart, where a product that the graph has in int8 would be
    in float, and where the file computes something else.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from edgekd.onnxio import bridge, files, passes
    from edgekd.onnxio.xnnpack import Delegable
    from edgekd.runtimes import converting

    shipped = files.read(source)
    wider = passes.apply(shipped, passes.WIDENED)
    known = bridge.stored(wider)
    graph = Delegable(passes.apply(wider, passes.FOLDED), known).eval()
    length = max(lengths)
    given = tuple(torch.ones(1, max(2, length // 2), dtype=torch.int64) for _ in graph.inputs)
    tokens = {1: torch.export.Dim("tokens", min=1, max=length)}
    exported = torch.export.export(graph, given, dynamic_shapes={"given": (tokens,) * len(given)})
    names = {INPUTS: " ".join(graph.inputs)}
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()], constant_methods=names)
    found = _delegation(lowered.exported_program().graph_module)
    content = lowered.to_executorch().buffer  # changes what is lowered
    out.write_bytes(content)
    int8 = {weight.name for weight in known.values() if weight.integers.tobytes() in content}
    bridge.check_int8(wider, known, int8, "ExecuTorch")
    quantizing = [name for name in found["outside"] if "quant" in name or "qparams" in name]
    if quantizing:
        raise ExportError(f"{quantizing[0]}: XNNPACK leaves a layer out that is int8 in the graph")
    sample = workloads.feeds(np.arange(length) % 32, graph.inputs)
    example = [torch.from_numpy(array) for array in sample.values()]
    difference = converting.difference(shipped, load(out, 1), lengths, "ExecuTorch")
    float32 = {name for name, parts in graph.matrices.items() if len(parts) == 1}
    named = {"int8": sorted(int8), "float": sorted(float32)}
    return {**named, **found, "delegated_time": _delegated_time(out, example), "difference": difference}


def _delegation(module: Any) -> dict[str, Any]:
    """How a lowered graph is divided."""
    outside, inside, delegates = collections.Counter[str](), 0, 0
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if node.op != "call_function" or name in ("getitem", "sym_size.int"):
            continue
        if name != "executorch_call_delegate":
            outside[name] += 1
            continue
        part = getattr(module, node.args[0].target).original_module.graph_module.graph
        delegates, inside = delegates + 1, inside + sum(node.op == "call_function" for node in part.nodes)
    share = inside / (inside + outside.total())
    return {"delegates": delegates, "delegated_nodes": share, "outside": dict(sorted(outside.items()))}


def _delegated_time(path: Path, given: Sequence[torch.Tensor], calls: int = 20) -> float:
    """XNNPACK's share of a call's time: the medians of what the library's own tracer tells."""
    from executorch.devtools import Inspector

    with tempfile.TemporaryDirectory() as folder, _silence():
        program = Runtime.get().load_program(path, enable_etdump=True)
        method = program.load_method("forward")
        for _ in range(calls):
            method.execute(given)
        trace = Path(folder) / "trace.etdp"
        program.write_etdump_result_to_file(str(trace), str(Path(folder) / "unused"))
        blocks = Inspector(etdump_path=str(trace)).event_blocks
    took = collections.defaultdict[str, float](float)
    for event in (event for block in blocks for event in block.events if event.perf_data is not None):
        took[event.name] += float(np.median(event.perf_data.raw))
    return took["DELEGATE_CALL"] / took["Method::execute"]
