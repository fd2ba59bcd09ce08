"""OpenVINO on the CPU: reads the ``.onnx`` as it is shipped.

Importing ``openvino`` reports its own use over the network unless the user has refused beforehand; the file in which
one refuses lies in the home folder, and writing it reports the refusal too. So we make its reporting package
unimportable, in this process only: openvino then uses the stand-in that it brings for systems without that package.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

if "openvino" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino

CONFIG = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
"""One request at a time."""

PRODUCTS = {
    "Convolution",
    "FullyConnected",
    "GRUSequence",
    "LSTMSequence",
    "MatMul",
    "RNNSeq",
    "ScaledDotProductAttention",
}
"""What OpenVINO calls the layers that multiply."""
ATTENTION = re.compile(r"Subgraph.*/MatMul(_\d+)?").fullmatch
"""It fuses attention's own products with what is between them."""


class OpenVinoSession:
    """One compiled model with one inference request."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.inputs = tuple(value.any_name for value in compiled.inputs)
        self._compiled = compiled
        names = [value.names for value in compiled.outputs]
        self._index = next((place for place, found in enumerate(names) if "logits" in found), 0)
        self._request = compiled.create_infer_request()

    def run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """The model's ``logits`` (or else its first output), copied out of the request's memory."""
        logits: NDArray[Any] = self._request.infer(feeds, share_inputs=True)[self._index]
        return logits

    def executed(self) -> dict[str, list[str]]:
        """The multiplications of the graph that OpenVINO made of the file: the nodes done in int8, and in float."""
        found: dict[str, list[str]] = {"int8": [], "float": []}
        for layer in self._compiled.get_runtime_model().get_ordered_ops():
            kind, precision, names = (
                layer.rt_info[key].astype(str) for key in ("layerType", "runtimePrecision", "originalLayersNames")
            )
            nodes = [name for name in names.split(",") if kind in PRODUCTS or ATTENTION(kind + name)]
            if nodes:
                node = nodes[0].removesuffix("/WithoutBiases").strip("/").replace("/", ".")
                found["int8" if precision in ("i8", "u8") else "float"].append(node)
        return found


def load(path: Path, threads: int, *, precision: str = "f32") -> OpenVinoSession:
    """Compile the model for ``threads`` threads and float32 arithmetic where the graph is not quantized.

    On a CPU with bfloat16 instructions OpenVINO's own default is bf16, and then a float model would be compared at
    another precision than everywhere else: that is the runtime ``openvino_bf16``.
    """
    config = {**CONFIG, "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(threads)}
    return OpenVinoSession(openvino.Core().compile_model(str(path), "CPU", config))


def version() -> str:
    """The openvino package's version."""
    return str(openvino.__version__)
