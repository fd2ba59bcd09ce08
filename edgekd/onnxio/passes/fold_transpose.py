"""Weights are stored the way the multiplication reads them.

Requires: ``constants``, ``fold_clip``.
Does: ``W[N,K] -> DequantizeLinear(axis 0) -> Transpose -> MatMul`` becomes ``W[K,N] -> DequantizeLinear(axis 1) ->
MatMul``, and a ``Gemm`` that transposes such a weight itself gets it transposed. Runtimes look for a
``DequantizeLinear`` directly before the multiplication; behind a ``Transpose`` some compute in float.
Ensures: no ``Transpose`` of a dequantized weight, and no ``Gemm`` with ``transB`` on one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import add_constant, attribute, axis, constant, insert_before, per_tensor, producer, replace


def run(model: ir.Model) -> int:
    """Return how many weights were transposed."""
    count = 0
    for node in list(model.graph):
        found = _weight(node)
        if found is None:
            continue
        dequantize, order = found
        value = _transposed(model.graph, dequantize, order, node)
        if node.op_type == "Transpose":
            replace(node, value)
        else:
            node.replace_input_with(1, value)
            del node.attributes["transB"]
        if not dequantize.outputs[0].uses():
            model.graph.remove(dequantize, safe=True)
        count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a transposed weight that is left."""
    for node in model.graph:
        if _weight(node) is not None:
            raise ExportError(f"{node.name}: transposes a dequantized weight at run time")


def _weight(node: ir.Node) -> tuple[ir.Node, list[int]] | None:
    """The DequantizeLinear of a constant that the node transposes, and the order of its dimensions after that."""
    if node.domain:
        return None
    if node.op_type == "Transpose":
        dequantize = producer(node.inputs[0], "DequantizeLinear")
    elif node.op_type == "Gemm" and attribute(node, "transB", 0):
        dequantize = producer(node.inputs[1], "DequantizeLinear")
    else:
        return None
    if dequantize is None:
        return None
    weight = constant(dequantize.inputs[0])
    if weight is None:
        return None
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(weight.ndim)[::-1]
    return dequantize, list(order)


def _transposed(graph: ir.Graph, dequantize: ir.Node, order: list[int], anchor: ir.Node) -> ir.Value:
    source = dequantize.inputs[0]
    weight = constant(source)
    assert source is not None and weight is not None
    moved = add_constant(graph, f"{source.name}_transposed", np.ascontiguousarray(weight.transpose(order)))
    attributes = {} if per_tensor(dequantize) else {"axis": order.index(axis(dequantize, 1, weight.ndim))}
    inputs = [moved, *dequantize.inputs[1:]]
    return insert_before(anchor, "DequantizeLinear", inputs, f"{dequantize.name}", attributes)
