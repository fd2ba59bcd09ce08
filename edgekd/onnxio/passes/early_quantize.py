"""What follows a convolution works on its integers.

Requires: ``constants``, ``common_subexpressions`` (one ``QuantizeLinear`` a tensor), ``constant_pads``.
Does: moves a ``QuantizeLinear`` up to the ``Conv`` from behind what commutes with it (``Relu``, ``Clip``, ``MaxPool``,
``ReduceMax``, ``Pad``), and a ``Relu``, ``MaxPool``, ``ReduceMax``, or ``Clip`` at numbers that integers stand for,
from behind the ``DequantizeLinear`` of a convolution's output to before that. ``Relu`` and ``Clip`` become a ``Clip``
of integers, or nothing where the quantization cuts as much by itself. Only a convolution that is quantized at once
becomes a ``QLinearConv`` in onnxruntime, which for its part drops a ``Relu`` in between where zero is the least
integer, and not for signed ones.
Ensures: nothing more. All numbers are the same: rounding keeps their order, and zero.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.onnxio.graph import add_constant, constant, insert_before, per_tensor, producer, replace, zero_point

MAXIMA = ("MaxPool", "ReduceMax")
COMMUTE = ("Clip", "Pad", "Relu", *MAXIMA)


def run(model: ir.Model) -> int:
    """Return how many nodes work on integers now."""
    count = 0
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear" and per_tensor(node):
            count += _moved_up(model.graph, node)
    for node in list(model.graph):
        if _commutes(node):
            count += _moved_down(model.graph, node)
    return count


def ensures(model: ir.Model) -> None:
    """Nothing is promised."""


def _moved_up(graph: ir.Graph, quantize: ir.Node) -> int:
    between: list[ir.Node] = []
    value = quantize.inputs[0]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or not _commutes(node):
            break
        between.append(node)
        value = node.inputs[0]
    if not between or producer(value, "Conv") is None or value is None or len(value.uses()) != 1:
        return 0
    now = insert_before(quantize, "QuantizeLinear", [value, *quantize.inputs[1:]], f"{quantize.name}")
    for node in between[::-1]:
        now = _on_integers(graph, node, now, quantize, quantize)
    replace(quantize, now)
    for node in between:
        graph.remove(node, safe=True)
    return len(between)


def _moved_down(graph: ir.Graph, node: ir.Node) -> int:
    """Put the ``DequantizeLinear`` before ``node`` behind it, if it stands for what a convolution computes."""
    dequantize = producer(node.inputs[0], "DequantizeLinear")
    quantize = dequantize
    while quantize is not None and quantize.op_type in (*COMMUTE, "DequantizeLinear"):
        value = quantize.inputs[0]
        quantize = value.producer() if value is not None else None
    if dequantize is None or quantize is None or quantize.op_type != "QuantizeLinear":
        return 0
    integers = dequantize.inputs[0]
    if integers is None or producer(quantize.inputs[0], "Conv") is None or not _exact(node, quantize):
        return 0
    now = _on_integers(graph, node, integers, quantize, node)
    if now is integers:
        replace(node, dequantize.outputs[0])
    else:
        replace(node, insert_before(node, "DequantizeLinear", [now, *dequantize.inputs[1:]], f"{node.name}"))
    return 1


def _commutes(node: ir.Node) -> bool:
    if node.domain or node.op_type not in COMMUTE or len(node.outputs) != 1:
        return False
    known = all(value is None or constant(value) is not None for value in node.inputs[1:])
    return known and ("mode" not in node.attributes or node.attributes["mode"].as_string() == "constant")


def _on_integers(graph: ir.Graph, node: ir.Node, integers: ir.Value, quantize: ir.Node, anchor: ir.Node) -> ir.Value:
    """What ``node``, put before ``anchor``, makes of what ``quantize`` made of its input; ``integers`` if nothing."""
    name, kind, rest = f"{node.name}", node.op_type, list(node.inputs[1:])
    if kind == "Pad":
        filled = constant(rest[1]) if len(rest) > 1 else None
        number = _integer(0.0 if filled is None else float(filled), quantize)
        rest[1:2] = [add_constant(graph, f"{name}_value", number)]
    elif kind not in MAXIMA:
        ends = [None if end is None else _integer(end, quantize) for end in _ends(node)]
        bounds = np.iinfo(zero_point(quantize).dtype)
        if ends[0] in (None, bounds.min) and ends[1] in (None, bounds.max):
            return integers
        kind, rest = "Clip", [None if end is None else add_constant(graph, f"{name}_end", end) for end in ends]
    now = insert_before(anchor, kind, [integers, *rest], name)
    made = now.producer()
    assert made is not None
    made.attributes.update(node.attributes)
    return now


def _ends(node: ir.Node) -> tuple[float | None, float | None]:
    """The least and the largest number that a ``Relu`` or ``Clip`` lets through."""
    if node.op_type == "Relu":
        return 0.0, None
    low, high = (None if array is None else float(array) for array in map(constant, [*node.inputs[1:], None, None][:2]))
    return low, high


def _exact(node: ir.Node, quantize: ir.Node) -> bool:
    """Whether integers stand for the very numbers that a node puts in the place of others, if it does."""
    if node.op_type not in ("Relu", "Clip"):
        return node.op_type in MAXIMA
    point = zero_point(quantize)
    bounds = np.iinfo(point.dtype)
    for end in _ends(node):
        steps = 0.0 if end is None else _steps(end, quantize)
        whole = abs(steps - round(steps)) < 1e-3
        if not whole and bounds.min <= steps + point <= bounds.max:
            return False
    return True


def _integer(number: float, quantize: ir.Node) -> np.ndarray:
    """What ``quantize`` makes of a number."""
    point = zero_point(quantize)
    bounds = np.iinfo(point.dtype)
    return np.asarray(np.clip(np.rint(_steps(number, quantize)) + point, bounds.min, bounds.max), point.dtype)


def _steps(number: float, quantize: ir.Node) -> float:
    scale = constant(quantize.inputs[1])
    assert scale is not None
    return float(np.float32(number) / scale)
