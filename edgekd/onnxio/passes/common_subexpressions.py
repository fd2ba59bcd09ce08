"""Compute nothing twice.

Requires: ``constants`` (equal initializers are one).
Does: merges nodes with the same operator, inputs and attributes. Thereby one ``QuantizeLinear`` serves query, key and
value, and shapes and masks that each layer computes anew are computed once.
Ensures: no two ``QuantizeLinear`` read the same tensor with the same scale and zero point.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from edgekd.errors import ExportError


def run(model: ir.Model) -> int:
    """Return how many nodes were merged into others."""
    before = len(list(model.graph))
    CommonSubexpressionEliminationPass()(model)
    return before - len(list(model.graph))


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a ``QuantizeLinear`` that repeats another."""
    seen: dict[tuple[object, ...], ir.Node] = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            first = seen.setdefault(
                (*map(id, node.inputs), *sorted((k, str(v.value)) for k, v in node.attributes.items())), node
            )
            if first is not node:
                raise ExportError(f"{node.name} repeats {first.name}: run `constants` before `common_subexpressions`")
