"""ONNX Runtime on the CPU: loads the ``.onnx`` as it is shipped, all graph optimizations on.

Its official builds report their use over the network, from a thread of their own, unless a variable says otherwise
before the library is first loaded (see the ``Privacy.md`` in its package). We say otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from edgekd import session as session_options


class OrtSession:
    """One ``InferenceSession``; a call is one ``run`` and no copy of ours."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.inputs = tuple(value.name for value in session.get_inputs())
        names = [value.name for value in session.get_outputs()]
        self._wanted = ["logits"] if "logits" in names else names[:1]
        self._run = session.run

    def run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """The model's ``logits`` (or else its first output)."""
        logits: NDArray[Any] = self._run(self._wanted, feeds)[0]
        return logits


def load(path: Path, threads: int, session: Mapping[str, Any] | None = None) -> OrtSession:
    """Open the model with ``threads`` intra-op threads, one operator at a time, and no provider but the CPU's.

    ``session`` holds options as in ``edgekd.session``, by which it then differs from the defaults.

    With one thread ONNX Runtime starts no pool; with more, its workers spin between calls, as they do for its users.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    more = session_options.apply(options, session or {})
    return OrtSession(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], **more))


def version() -> str:
    """The onnxruntime package's version."""
    return str(onnxruntime.__version__)
