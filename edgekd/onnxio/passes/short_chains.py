"""Fewer steps for the same small tensors.

Requires: ``constants``; opset 15 or newer for the second rule.
Does: merges two ``Unsqueeze`` in a row into one, and turns ``Shape -> Gather -> Unsqueeze`` (one dimension as a
vector) into one ``Shape`` with ``start`` and ``end``. In a small student each node costs as much as its arithmetic.
Ensures: nothing more.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.onnxio.graph import add_constant, constant, dims, infer, insert_before, producer, replace


def run(model: ir.Model) -> int:
    """Return how many chains became shorter."""
    infer(model)
    count = 0
    opset = model.graph.opset_imports.get("", 0)
    for node in list(model.graph):
        if node.op_type != "Unsqueeze" or node.domain or len(node.inputs) < 2:
            continue
        value = _merged(model.graph, node) or (_dimension(node) if opset >= 15 else None)
        if value is not None:
            replace(node, value)
            count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Nothing is promised."""


def _merged(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    inner = producer(node.inputs[0], "Unsqueeze")
    if inner is None or len(inner.inputs) < 2:
        return None
    first, second, shape = constant(inner.inputs[1]), constant(node.inputs[1]), dims(inner.inputs[0])
    if first is None or second is None or shape is None:
        return None
    rank = len(shape) + first.size + second.size
    late = {int(a) % rank for a in second.ravel()}
    free = [place for place in range(rank) if place not in late]  # where the dimensions of the inner output end up
    early = {free[int(a) % (len(shape) + first.size)] for a in first.ravel()}
    axes = add_constant(graph, f"{node.name}_axes", np.array(sorted(late | early), np.int64))
    return insert_before(node, "Unsqueeze", [inner.inputs[0], axes], node.name or "")


def _dimension(node: ir.Node) -> ir.Value | None:
    gather = producer(node.inputs[0], "Gather")
    shape = producer(gather.inputs[0], "Shape") if gather is not None else None
    if gather is None or shape is None or shape.attributes:
        return None
    index, source = constant(gather.inputs[1]), dims(shape.inputs[0])
    if index is None or index.ndim or source is None:
        return None
    start = int(index) % len(source)
    return insert_before(node, "Shape", [shape.inputs[0]], f"{node.name}", {"start": start, "end": start + 1})
