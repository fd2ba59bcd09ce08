"""What the graph passes share: reading constants, inserting nodes, knowing shapes. Works on ``onnx_ir`` graphs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

PROBES = ((7, 13), (11, 5), (17, 3), (19, 2))
"""Two sizes for each dynamic dimension: a dimension that follows both is that dynamic dimension."""


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind an initializer, ``None`` for anything computed or fed."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; ``name`` gets a number behind it where it is taken."""
    name = free(graph, name)
    value = ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
    graph.register_initializer(value)
    return value


def insert_before(
    anchor: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    name: str,
    attributes: Mapping[str, int | float | str | list[int]] | None = None,
    domain: str = "",
) -> ir.Value:
    """Put a one-output node before ``anchor``; return its output (named like the node).

    Two nodes may share a name until ``passes.names``: one often stands in for the other.
    """
    graph = anchor.graph
    assert graph is not None
    output = ir.Value(name=free(graph, name))
    options = dict(attributes or {})
    graph.insert_before(anchor, ir.node(op_type, inputs, options, domain=domain, outputs=[output], name=name))
    return output


def free(graph: ir.Graph, name: str) -> str:
    """``name``, with a number behind it where the graph has a value of that name."""
    taken = {value.name for value in [*graph.inputs, *graph.initializers.values()]}
    taken |= {value.name for node in graph for value in node.outputs}
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


def replace(node: ir.Node, *values: ir.Value) -> None:
    """Let ``values`` take the place of the outputs of ``node``, then remove the node.

    The names of graph outputs are kept.
    """
    graph = node.graph
    assert graph is not None
    names = {}
    for old, value in zip(node.outputs, values, strict=True):
        if old.is_graph_output():
            value.shape, value.type, names[value] = old.shape, old.type, old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for value, name in names.items():
        value.name = name


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes ``value`` if it is of that type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type == op_type else None


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute with the default that the operator's specification gives it."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def axis(node: ir.Node, default: int, rank: int) -> int:
    """The ``axis`` attribute counted from the front."""
    value = attribute(node, "axis", default)
    return value + rank if value < 0 else value


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape that ``infer`` found: a number, the name of a dynamic dimension, or ``None`` where neither is sure."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def per_tensor(node: ir.Node) -> bool:
    """Whether a Q/DQ node has one constant scale for the whole tensor."""
    scale = constant(node.inputs[1])
    return scale is not None and scale.ndim == 0


def zero_point(node: ir.Node) -> np.ndarray:
    """A Q/DQ node's zero point; the standard's where it has none."""
    found = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return np.array(0, np.uint8) if found is None else found


def dequantized(integers: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """As ``DequantizeLinear`` has them: the difference in int32, the product in float32."""
    floats: np.ndarray = (integers.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale
    return floats


def infer(model: ir.Model) -> None:
    """Write the shape of every value, in numbers and names of the inputs' dynamic dimensions.

    ONNX's own inference loses a dynamic dimension at the first broadcast. So it runs twice, with two sets of numbers in
    place of the names: what is equal in both runs is static, what follows a name's numbers is that name
    (``batch*sequence`` for their product, ``sequence+3`` for what is always longer by that).
    """
    graph = model.graph
    declared = {value: value.shape for value in [*graph.inputs, *graph.outputs]}
    names = sorted({d for value in graph.inputs for d in dims(value) or () if isinstance(d, str)})
    values = [v for node in graph for v in node.outputs]
    runs = []
    for turn in (0, 1):
        size = {name: PROBES[i][turn] for i, name in enumerate(names)}
        for value in values:
            value.shape = None
        for value in graph.inputs:
            known = dims(value)
            value.shape = None if known is None else ir.Shape([size[d] if isinstance(d, str) else d for d in known])
        ShapeInferencePass(strict_mode=False)(model)
        runs.append({value: dims(value) for value in values})
        for value, shape in declared.items():
            value.shape = shape
    named: dict[tuple[Any, Any], str] = {PROBES[i]: name for i, name in enumerate(names)}
    for (p, one), (q, other) in itertools.combinations(list(named.items()), 2):
        named[p[0] * q[0], p[1] * q[1]] = f"{one}*{other}"
    for value in values:
        first, second = runs[0][value], runs[1][value]
        if first is None or second is None or len(first) != len(second):
            value.shape = None
        else:
            pairs = zip(first, second, strict=True)
            value.shape = ir.Shape([a if isinstance(a, int) and a == b else _named(named, a, b) for a, b in pairs])
    for value in graph.outputs:
        value.shape = declared[value]


def _named(named: Mapping[tuple[Any, Any], str], one: Any, other: Any) -> str | None:
    """What a dimension follows that has these numbers in the two runs, if anything."""
    if (one, other) in named or not isinstance(one, int) or not isinstance(other, int):
        return named.get((one, other))
    longer = ((one - a, name) for (a, b), name in named.items() if 0 < one - a == other - b)
    return next((f"{name}+{more}" for more, name in longer), None)
