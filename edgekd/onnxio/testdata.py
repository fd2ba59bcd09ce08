"""Inputs as files beside a graph, in the layout of ONNX's own tests, which onnxruntime_perf_test reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import numpy_helper

from edgekd.bench import workloads


def write(folder: Path, inputs: Path, names: Sequence[str], length: int) -> None:
    """``input_0.pb``, ...: what the graph's inputs ``names`` take of the first ``length`` tokens in an inputs file."""
    folder.mkdir(parents=True)
    (tokens,) = workloads.calls(f"fixed{length}", workloads.load(inputs), 1)
    for number, (name, array) in enumerate(workloads.feeds(tokens, names).items()):
        (folder / f"input_{number}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
