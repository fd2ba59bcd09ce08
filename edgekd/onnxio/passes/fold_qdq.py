"""Quantized values become the floats that they stand for: for runtimes that read no Q/DQ, or read it as float work.

Requires: ``constants``, ``fold_clip``.
Does: dequantizes integer weights, biases and tables, whose numbers stay on their grid, so that whoever quantizes them
again finds the same integers; puts a ``Clip`` in the place of an activation's ``QuantizeLinear -> DequantizeLinear``,
which does what its range did (often the work of a ``Relu`` or ``Relu6`` that had been left to it), unless what is
quantized cannot leave the range. A product of integers whose ranges are found at run time becomes one of floats.
Ensures: nothing quantizes or dequantizes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekd.errors import ExportError
from edgekd.onnxio.graph import (
    add_constant,
    attribute,
    constant,
    dequantized,
    insert_before,
    producer,
    replace,
    zero_point,
)

QUANTIZING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")
MOVING = ("Clip", "Gather", "MaxPool", "Pad", "ReduceMax", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""What works on integers as on the floats that these stand for, its own constants aside."""
SPAN = {"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""Between which numbers the outputs of these lie."""


def run(model: ir.Model) -> int:
    """Return how many nodes quantize or dequantize no more."""
    graph = model.graph
    before = _left(graph)
    for node in list(graph):
        if node.op_type == "MatMulInteger":
            _float_product(graph, node)
    for node in list(graph):
        if node.op_type == "DequantizeLinear":
            _dequantized(graph, node)
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            replace(node, _in_range(graph, node))
    RemoveUnusedNodesPass()(model)
    return len(before) - len(_left(graph))


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for what still quantizes or dequantizes."""
    for node in _left(model.graph):
        raise ExportError(f"{node.name}: {node.op_type} has no float in its place: this graph stays quantized")


def _left(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type in QUANTIZING]


def _dequantized(graph: ir.Graph, node: ir.Node) -> None:
    """Let floats flow to where ``node`` had made them, if it is known where its integers come from."""
    scale, zero = constant(node.inputs[1]), zero_point(node)
    between, value = origin(node.inputs[0])
    if (source := producer(value, "DynamicQuantizeLinear")) is not None and not between:
        node.outputs[0].replace_all_uses_with(_known(source.inputs[0]))
        return
    integers = constant(value)
    if scale is None or value is None or (integers is None and producer(value, "QuantizeLinear") is None):
        return
    if integers is not None:
        shape = [1] * integers.ndim
        if scale.ndim:
            of_output = attribute(node, "axis", 1)
            shape[of_output if not between and of_output >= 0 else -1] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape if zero.ndim else ())
        floats = add_constant(graph, f"{value.name}_float", dequantized(integers, scale, zero))
        if not between:
            replace(node, floats)
            return
        between[-1].replace_input_with(0, floats)
    for step in between:
        step.outputs[0].dtype = ir.DataType.FLOAT
        for place in _numbers(step):
            number = constant(step.inputs[place])
            if number is not None and number.dtype.kind in "iu":
                name = f"{step.name}_float"
                step.replace_input_with(place, add_constant(graph, name, dequantized(number, scale, zero)))
    replace(node, _known(node.inputs[0]))


def _known(value: ir.Value | None) -> ir.Value:
    """An input that an operator cannot be without."""
    assert value is not None
    return value


def _numbers(node: ir.Node) -> tuple[int, ...]:
    """Which inputs of a node hold numbers of the same kind as its first."""
    places = {"Clip": (1, 2), "Pad": (2,)}.get(node.op_type, ())
    return tuple(place for place in places if place < len(node.inputs) and node.inputs[place] is not None)


def _in_range(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """What stands in the place of a ``QuantizeLinear``: its input, cut where its range cuts what others do not."""
    value, scale, zero = _known(node.inputs[0]), constant(node.inputs[1]), zero_point(node)
    assert scale is not None
    made, integers = value.producer(), np.iinfo(zero.dtype)
    ends = [dequantized(np.asarray(end), scale, zero) for end in (integers.min, integers.max)]
    within = SPAN.get(made.op_type) if made is not None else None
    if within is not None and ends[0] <= within[0] and within[1] <= ends[1]:
        return value
    bounds = [add_constant(graph, f"{node.name}_end", end) for end in ends]
    return insert_before(node, "Clip", [value, *bounds], f"{node.name}")


def _float_product(graph: ir.Graph, node: ir.Node) -> None:
    """``DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul`` becomes the product of floats that it stands for."""
    between, source = origin(node.inputs[0])
    left, weight = producer(source, "DynamicQuantizeLinear"), constant(node.inputs[1])
    cast = next(iter(node.outputs[0].consumers()), None)
    scaled = next(iter(cast.outputs[0].consumers()), None) if cast is not None else None
    factor = producer(scaled.inputs[1], "Mul") if scaled is not None and scaled.op_type == "Mul" else None
    scale = constant(factor.inputs[1]) if factor is not None else None
    if left is None or weight is None or scaled is None or scale is None:
        return
    value = left.inputs[0]
    if between:
        between[-1].replace_input_with(0, value)
        value = node.inputs[0]
    floats = add_constant(
        graph, f"{_known(node.inputs[1]).name}_float", dequantized(weight, scale, np.zeros((), np.int8))
    )
    replace(scaled, insert_before(scaled, "MatMul", [value, floats], f"{node.name}"))


def origin(value: ir.Value | None) -> tuple[list[ir.Node], ir.Value | None]:
    """What moves a value about, the last first, and where it comes from."""
    between = []
    while value is not None and (node := value.producer()) is not None and not node.domain and node.op_type in MOVING:
        between.append(node)
        value = node.inputs[0]
    return between, value
