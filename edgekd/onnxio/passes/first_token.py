"""A classifier that looks at one token needs the last layer for that token only.

Requires: ``constant_reshape`` and ``dead`` (a shape computed from a tensor is another use of it).
Does: where a ``Gather`` takes one position of a dimension, moves that choice up the graph, over every operator that
treats the positions of that dimension apart (element by element, normalization over another dimension, the left
factor of a product), up to the tensors that something else needs whole. Queries, scores, projections and the
feed-forward part of the last layer are then computed for one token. The arithmetic of that token is unchanged.
Ensures: nothing more.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.onnxio.graph import add_constant, axis, constant, dims, infer, insert_before, per_tensor

UNARY = {"Cast", "Clip", "Elu", "Erf", "Exp", "Gelu", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Sqrt", "Tanh"}
BROADCAST = {"Add", "Div", "Equal", "Mul", "Pow", "Sub", "Where"}
Uses = dict[tuple[ir.Node, int], int]  # (node, input) -> the dimension of that input of which one position is enough


def run(model: ir.Model) -> int:
    """Return how many gathers were moved."""
    count = 0
    for node in list(model.graph):
        place = _position(node)
        if place is None:
            continue
        infer(model)
        shape = dims(node.inputs[0])
        if shape is None:
            continue
        along = axis(node, 0, len(shape))
        if shape[along] == 1:
            continue
        inside, uses = _region(model.graph, node, along)
        if not any(n.op_type in ("MatMul", "LayerNormalization") for n in inside):
            continue  # a slice costs about as much as what little it would spare
        _cut(model.graph, inside, uses, place)
        node.replace_input_with(1, add_constant(model.graph, f"{node.name}_index", np.array(0, np.int64)))
        count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Nothing is promised."""


def _position(node: ir.Node) -> int | None:
    """The one position that a Gather takes, counted from the front."""
    if node.op_type != "Gather" or node.domain or constant(node.inputs[0]) is not None:
        return None
    index = constant(node.inputs[1])
    return int(index) if index is not None and not index.ndim and index >= 0 else None


def _region(graph: ir.Graph, gather: ir.Node, along: int) -> tuple[list[ir.Node], Uses]:
    """The nodes above ``gather`` that may work on one position, last first, and the uses inside the region."""
    uses: Uses = {(gather, 0): along}
    inside: list[ir.Node] = []
    whole: set[ir.Value] = set()
    for node in reversed(list(graph)):
        if len(node.outputs) != 1 or node.outputs[0].is_graph_output() or node.outputs[0] in whole:
            continue
        wanted = [uses.get((use.node, use.idx)) for use in node.outputs[0].uses()]
        reached = {a for a in wanted if a is not None}
        # A DequantizeLinear goes along even where others need it whole: it is copied, and its small input sliced.
        if len(reached) != 1 or (None in wanted and node.op_type != "DequantizeLinear"):
            continue
        needs = _needs(node, reached.pop())
        if needs is None:
            continue
        if None in wanted and node.inputs[0] is not None:
            whole.add(node.inputs[0])
        inside.append(node)
        uses.update({(node, index): at for index, at in needs.items()})
    return inside, uses


def _cut(graph: ir.Graph, inside: list[ir.Node], uses: Uses, place: int) -> None:
    """Slice every tensor where it enters the region."""
    for node in inside:
        outer = [use for use in node.outputs[0].uses() if (use.node, use.idx) not in uses]
        if outer:  # a DequantizeLinear that others need whole: they get a copy
            copy = insert_before(node, node.op_type, list(node.inputs), f"{node.name}_whole", _attributes(node))
            for use in outer:
                use.node.replace_input_with(use.idx, copy)
    members = set(inside)
    slices: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in list(graph):  # in order, so that a slice stands before its first use
        for index, value in enumerate(node.inputs):
            at = uses.get((node, index))
            if at is None or value is None or value.producer() in members:
                continue
            if (value, at) not in slices:
                bounds = [add_constant(graph, f"{value.name}_{part}", np.array([n])) for part, n in
                          (("start", place), ("end", place + 1), ("axis", at))]  # fmt: skip
                slices[value, at] = insert_before(node, "Slice", [value, *bounds], f"{_origin(value)}_first")
            node.replace_input_with(index, slices[value, at])


def _origin(value: ir.Value) -> str:
    node = value.producer()
    return (node.name if node is not None else None) or value.name or "value"


def _attributes(node: ir.Node) -> dict[str, int]:
    return {name: value.as_int() for name, value in node.attributes.items()}


def _needs(node: ir.Node, at: int) -> dict[int, int] | None:
    """Which dimension of which input gives dimension ``at`` of the output position by position; ``None``: none does."""
    shapes = [dims(value) for value in node.inputs]
    out, kind = dims(node.outputs[0]), node.op_type
    if out is None or node.domain:
        return None
    rank = len(out)
    if kind in BROADCAST:
        return _broadcast(shapes, out, at)
    if not shapes or shapes[0] is None:
        return None
    if kind in UNARY:
        return {0: at}
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        return {0: at} if per_tensor(node) or axis(node, 1, rank) != at else None
    if kind == "LayerNormalization":
        return {0: at} if at < axis(node, -1, rank) else None
    if kind == "Softmax":
        return {0: at} if at != axis(node, -1, rank) else None
    if kind == "Transpose":
        return {0: node.attributes["perm"].as_ints()[at]} if "perm" in node.attributes else None
    if kind in ("MatMul", "MatMulInteger"):
        right = shapes[1]
        if right is None or rank < 2 or len(shapes[0]) != rank:
            return None
        return {0: at} if at == rank - 2 or (at < rank - 1 and len(right) == 2) else None
    if kind == "Reshape":
        target = constant(node.inputs[1])
        same = shapes[0][: at + 1] == out[: at + 1] and None not in out[: at + 1]
        return {0: at} if same and target is not None and target[at] in (0, -1) else None
    return None


def _broadcast(
    shapes: list[tuple[int | str | None, ...] | None], out: tuple[int | str | None, ...], at: int
) -> dict[int, int] | None:
    needs: dict[int, int] = {}
    for index, shape in enumerate(shapes):
        if shape is None:
            return None
        own = at - (len(out) - len(shape))
        if own < 0 or shape[own] == 1:
            continue
        if shape[own] is None or shape[own] != out[at]:
            return None
        needs[index] = own
    return needs or None
