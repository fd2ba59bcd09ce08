"""OpenVINO on the CPU with bfloat16 in the place of float32, as it is by default where a CPU has instructions for it.

A row of its own: what is float in the graph is rounded to eight bits of mantissa here, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

from edgekd.runtimes import openvino
from edgekd.runtimes.openvino import version

__all__ = ["load", "version"]


def load(path: Path, threads: int) -> openvino.OpenVinoSession:
    """Compile the model for ``threads`` threads and bfloat16 arithmetic where the graph is not quantized."""
    return openvino.load(path, threads, precision="bf16")
