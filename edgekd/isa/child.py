"""Run a model on prepared inputs: ``python child.py MODEL INPUTS OUTPUT SESSION``, in a process that may be emulated.

Needs numpy and onnxruntime alone, since the emulated Python has nothing else. INPUTS is an ``.npz`` with ``offsets``
int64 (N + 1) and, under the name of each input of the model, its values of all N examples one after another. OUTPUT
gets ``logits`` float32 (N, classes). SESSION holds the bundle's options (``edgekd.session``) as JSON. One example a
call, one thread, as ``deploy`` runs it. Prints onnxruntime's version.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is first loaded

import onnxruntime

APPLY = runpy.run_path(str(Path(__file__).parents[1] / "session.py"))["apply"]  # edgekd is not installed there


def main(model: str, inputs: str, output: str, session_options: str) -> None:
    """See the module."""
    with np.load(inputs, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    offsets = values.pop("offsets")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    more = APPLY(options, json.loads(session_options))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], **more)
    name = session.get_outputs()[0].name
    rows = [
        session.run([name], {key: array[None, start:end] for key, array in values.items()})[0]
        for start, end in pairwise(offsets)
    ]
    np.savez(output, logits=np.concatenate(rows))
    print(onnxruntime.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
