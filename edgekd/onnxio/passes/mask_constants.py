"""Masks that every runtime can digest.

Requires: ``constants``.
Does: replaces numbers below -1e30 (the lowest float, or minus infinity, that attention masks are made of) in
constants by -1e4. Added to a score, both give a softmax of exactly 0 in float32; but the lowest float ruins the
scales of runtimes that quantize, and overflows where two masks add up.
Ensures: no constant holds a number below -1e30. Outputs are the same but for a row in which every token is masked:
there attention falls on all tokens by their scores, and not evenly.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import add_constant, constant

LOWEST = -1e30
MASKED = -1e4


def run(model: ir.Model) -> int:
    """Return how many constants were changed."""
    found = [value for value in model.graph.initializers.values() if _lowest(value)]
    for value in found:
        array = constant(value)
        assert array is not None and value.name is not None
        value.replace_all_uses_with(
            add_constant(model.graph, value.name, np.where(array < LOWEST, array.dtype.type(MASKED), array))
        )
        del model.graph.initializers[value.name]
    return len(found)


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a constant with such a number."""
    for name, value in model.graph.initializers.items():
        if _lowest(value):
            raise ExportError(f"{name}: holds a number below {LOWEST:g}")


def _lowest(value: ir.Value) -> bool:
    if value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return False
    array = constant(value)
    return array is not None and array.size > 0 and bool(array.min() < LOWEST)
