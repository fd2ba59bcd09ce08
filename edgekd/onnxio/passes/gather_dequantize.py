"""Look up eight-bit rows, then dequantize only those.

Requires: ``constants``, ``fold_clip``.
Does: ``table -> DequantizeLinear -> Gather`` becomes ``table -> Gather -> DequantizeLinear`` for scales per tensor,
or per channel along a dimension that is not gathered. Otherwise the whole table would be dequantized in every call.
Ensures: no ``Gather`` reads a dequantized table. One scale per gathered row cannot be kept by one
``DequantizeLinear``: that is an error.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import axis, constant, dims, infer, insert_before, per_tensor, producer, replace


def run(model: ir.Model) -> int:
    """Return how many gathers were moved."""
    found = [(node, table) for node in list(model.graph) if (table := _table(node)) is not None]
    if found:
        infer(model)
    for node, table in found:
        attributes = {}
        weight, indices = constant(table.inputs[0]), dims(node.inputs[1])
        assert weight is not None
        gathered = axis(node, 0, weight.ndim)
        if not per_tensor(table):
            channel = axis(table, 1, weight.ndim)
            if channel == gathered or indices is None:
                continue
            attributes["axis"] = channel if channel < gathered else channel + len(indices) - 1
        rows = insert_before(node, "Gather", [table.inputs[0], node.inputs[1]], f"{node.name}", {"axis": gathered})
        replace(node, insert_before(node, "DequantizeLinear", [rows, *table.inputs[1:]], f"{table.name}", attributes))
        if not table.outputs[0].uses():
            model.graph.remove(table, safe=True)
    return len(found)


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a ``Gather`` of a dequantized table."""
    for node in model.graph:
        if _table(node) is not None:
            raise ExportError(
                f"{node.name}: dequantizes its whole table in every call; give the embedding one scale per tensor, "
                "or one per hidden channel"
            )


def _table(node: ir.Node) -> ir.Node | None:
    if node.op_type != "Gather" or node.domain:
        return None
    table = producer(node.inputs[0], "DequantizeLinear")
    return table if table is not None and constant(table.inputs[0]) is not None else None
