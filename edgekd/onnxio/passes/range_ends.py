"""Linear layers are shown the ends of their input's range, for runtimes that find a range anew for each row.

Such a runtime (XNNPACK) lays its 256 steps between a row's least and greatest number. Where these two are always the
ends of the range that the graph was trained with, its steps are the graph's own, and its integers too.
Requires: ``constants``, ``fold_clip``.
Does: where a ``Gemm`` or ``MatMul`` multiplies a tensor of a constant range with a quantized matrix, the tensor gets
two more columns, the ends of that range, and the matrix two rows of zeros for them: the product stays what it was.
Ensures: every such tensor has these columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import (
    add_constant,
    attribute,
    constant,
    dequantized,
    dims,
    infer,
    insert_before,
    producer,
    zero_point,
)
from edgekd.onnxio.passes.fold_qdq import origin


class Layer(NamedTuple):
    """A multiplication: the node, what it multiplies, the ends of that one's range, and the matrix in integers."""

    node: ir.Node
    tensor: ir.Value
    ends: np.ndarray[Any, Any]
    matrix: ir.Value


def run(model: ir.Model) -> int:
    """Return how many layers are shown the ends of their range."""
    graph = model.graph
    if not (layers := _layers(graph)):
        return 0
    infer(model)
    wider = dict[ir.Value, ir.Value]()
    columns = {layer.matrix: 1 if attribute(layer.node, "transB", 0) else 0 for layer in layers}
    for layer in layers:
        if layer.tensor not in wider:
            wider[layer.tensor] = _wider(graph, layer)
        layer.node.replace_input_with(0, wider[layer.tensor])
    for matrix, axis in columns.items():
        integers = constant(matrix)
        assert integers is not None
        more = np.pad(integers, [(0, 2 * (at == axis)) for at in (0, 1)])
        matrix.const_value, matrix.shape = ir.tensor(more, name=matrix.name), ir.Shape(more.shape)
    return len(layers)


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a layer that is not shown the ends of its range."""
    for layer in _layers(model.graph):
        raise ExportError(f"{layer.node.name}: the ends of its input's range are not among that input's columns")


def _layers(graph: ir.Graph) -> list[Layer]:
    """The layers that are not shown these ends yet."""
    found = []
    for node in graph:
        if node.op_type not in ("Gemm", "MatMul") or attribute(node, "transA", 0):
            continue
        left, right = (producer(value, "DequantizeLinear") for value in node.inputs[:2])
        matrix = right.inputs[0] if right is not None else None
        integers, tensor = constant(matrix), node.inputs[0]
        if left is None or tensor is None or matrix is None or integers is None or integers.ndim != 2:
            continue
        scale, zero = constant(left.inputs[1]), zero_point(left)
        if scale is not None and scale.ndim == 0 and producer(origin(left.inputs[0])[1], "QuantizeLinear"):
            limits = np.iinfo(zero.dtype)
            found.append(Layer(node, tensor, dequantized(np.array([limits.min, limits.max]), scale, zero), matrix))
    return found


def _wider(graph: ir.Graph, layer: Layer) -> ir.Value:
    """The tensor that a layer multiplies with the ends of its range as its last two columns."""
    rank = len(dims(layer.tensor) or ()) or 2
    pads = add_constant(graph, "range_pads", np.array([0] * (2 * rank - 1) + [1]))
    value = layer.tensor
    for end in layer.ends:
        number = add_constant(graph, f"{layer.tensor.name}_end", np.asarray(end))
        value = insert_before(layer.node, "Pad", [value, pads, number], f"{layer.tensor.name}_wider")
    return value
