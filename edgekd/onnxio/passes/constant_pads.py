"""Padding that depends on nothing is a constant, and none at all no node.

Requires: ``constants``.
Does: computes the widths of a ``Pad`` that the exporter puts together out of constants (it turns torch's order of
dimensions round in eight nodes, and does not fold them). Drops a ``Pad`` by nothing, which would copy its input.
Ensures: nothing more; widths that depend on an input stay computed.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from edgekd.onnxio.graph import add_constant, constant, replace


def run(model: ir.Model) -> int:
    """Return how many widths became constant."""
    found = [node for node in model.graph if node.op_type == "Pad" and not node.domain and _fixed(node.inputs[1])]
    if not found:
        return 0
    proto = ir.to_proto(model)
    needed = {value for node in found for value in _above(node.inputs[1])}
    kept = [one for one, node in zip(proto.graph.node, model.graph, strict=True) if node.outputs[0] in needed]
    names = [node.inputs[1].name for node in found if node.inputs[1] is not None]
    del proto.graph.node[:], proto.graph.output[:], proto.graph.input[:]
    proto.graph.node.extend(kept)
    for name in dict.fromkeys(names):
        proto.graph.output.add(name=name)
    arrays = dict(zip(dict.fromkeys(names), ReferenceEvaluator(proto).run(None, {}), strict=True))
    for node, name in zip(found, names, strict=True):
        if arrays[name].any() or node.inputs[0] is None:
            node.replace_input_with(1, add_constant(model.graph, f"{node.name}_widths", arrays[name]))
        else:
            replace(node, node.inputs[0])
    return len(found)


def ensures(model: ir.Model) -> None:
    """Nothing is promised."""


def _above(value: ir.Value | None) -> set[ir.Value]:
    """``value`` and all that it is computed from."""
    todo, seen = [value], set[ir.Value]()
    while todo:
        one = todo.pop()
        if one is not None and one not in seen:
            seen.add(one)
            node = one.producer()
            todo.extend(node.inputs if node is not None else ())
    return seen


def _fixed(value: ir.Value | None) -> bool:
    above = _above(value)
    return constant(value) is None and not any(one.is_graph_input() for one in above)
