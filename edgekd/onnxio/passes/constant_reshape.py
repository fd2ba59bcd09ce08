"""Shapes that are known but for the batch and the sequence need no arithmetic.

Requires: the dynamic dimensions of the inputs have names.
Does: gives a ``Reshape`` whose shape is computed a constant one: 0 where a dimension equals the data's at the same
place, the number where it is static, -1 for at most one other. The chains of ``Shape``, ``Gather``, ``Unsqueeze`` and
``Concat`` die with it.
Ensures: nothing more; a shape that cannot be written so stays computed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.onnxio.graph import add_constant, attribute, constant, dims, infer


def run(model: ir.Model) -> int:
    """Return how many shapes became constant."""
    count = 0
    infer(model)
    for node in list(model.graph):
        if (
            node.op_type != "Reshape"
            or node.domain
            or attribute(node, "allowzero", 0)
            or constant(node.inputs[1]) is not None
        ):
            continue
        shape = _shape(dims(node.inputs[0]), dims(node.outputs[0]))
        if shape is not None:
            node.replace_input_with(1, add_constant(model.graph, f"{node.name}_shape", np.array(shape, np.int64)))
            count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Nothing is promised."""


def _shape(
    source: tuple[int | str | None, ...] | None, target: tuple[int | str | None, ...] | None
) -> list[int] | None:
    if source is None or target is None:
        return None
    shape: list[int] = []
    for i, size in enumerate(target):
        if isinstance(size, int):
            shape.append(size)
        elif size is not None and i < len(source) and source[i] == size:
            shape.append(0)
        else:
            shape.append(-1)
    return shape if shape.count(-1) <= 1 else None
