"""The runtime ``openvino`` where ``model.onnx`` may be a link to a file in OpenVINO's own format, as NNCF writes them.

The measuring child imports this file.
"""

from __future__ import annotations

from pathlib import Path

from edgekd.runtimes import openvino
from edgekd.runtimes.openvino import OpenVinoSession, version

__all__ = ["load", "version"]


def load(path: Path, threads: int) -> OpenVinoSession:
    """Compile what ``path`` leads to, as the runtime itself does; weights are looked for beside the file meant."""
    return openvino.load(path.resolve(), threads)
