"""Mark calls for ``instructions.c``: ``python instructions_child.py LENGTH,LENGTH,... MODEL...`` in an emulated Python.

Needs numpy and onnxruntime alone. Each model is called with each length, ``CALLS`` times between two marks, after two
calls to warm up.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

CALLS = 3


def main(lengths: str, *models: str) -> None:
    """See the module."""
    gc.disable()
    for model in models:
        count(model, [int(length) for length in lengths.split(",")])


def count(model: str, lengths: list[int]) -> None:
    """One model."""
    mark = ctypes.CDLL(None).getpriority
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for length in lengths:
        shape = (1, length)
        given = {"input_ids": np.arange(length).reshape(shape) % 100, "attention_mask": np.ones(shape, np.int64)}
        given["token_type_ids"] = np.zeros(shape, np.int64)
        feeds = {value.name: given[value.name] for value in session.get_inputs()}
        for _ in range(2):
            session.run(None, feeds)
        for _ in range(CALLS):
            mark(99, length)
            session.run(None, feeds)
            mark(99, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
