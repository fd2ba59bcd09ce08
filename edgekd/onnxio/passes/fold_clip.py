"""Narrow-range weights need no ``Clip`` at run time.

Requires: ``constants``.
Does: evaluates ``Clip`` of an initializer (the exporter writes one behind every weight whose range is -127..127).
Ensures: no ``Clip`` of a constant is left.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import add_constant, constant, replace


def run(model: ir.Model) -> int:
    """Return how many clips were folded."""
    count = 0
    for node in list(model.graph):
        arrays = _constants(node)
        if arrays is None:
            continue
        value, low, high = arrays
        assert value is not None
        if low is not None:
            value = np.maximum(value, low)
        if high is not None:
            value = np.minimum(value, high)
        source = node.inputs[0]
        assert source is not None
        replace(node, add_constant(model.graph, f"{source.name}_clipped", value))
        count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a ``Clip`` of a constant."""
    for node in model.graph:
        if _constants(node) is not None:
            raise ExportError(f"{node.name}: a Clip of a constant is left")


def _constants(node: ir.Node) -> list[np.ndarray | None] | None:
    if node.op_type != "Clip" or node.domain:
        return None
    arrays = [constant(value) for value in node.inputs] + [None, None]
    known = all(value is None or array is not None for value, array in zip(node.inputs, arrays, strict=False))
    return arrays[:3] if known else None
