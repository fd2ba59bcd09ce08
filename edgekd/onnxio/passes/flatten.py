"""Linear layers as matrix products with their bias inside.

Requires: ``fold_transpose``, ``constant_reshape``; runs after ``first_token`` and before ``gemm_bias``.
Does: what treats all tokens alike (linear layers, normalization, element by element) works on a matrix (tokens of all
rows, channels) instead of (batch, sequence, channels), and ``MatMul`` followed by the ``Add`` of a bias becomes
``Gemm``, whose bias costs nothing. Reshapes remain only where attention needs the sequence.
Ensures: nothing more.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.onnxio.graph import add_constant, axis, constant, dims, infer, insert_before, per_tensor, replace
from edgekd.onnxio.passes.first_token import BROADCAST, UNARY

Shape = tuple[int | str | None, ...]


def run(model: ir.Model) -> int:
    """Return how many multiplications work on matrices now."""
    infer(model)
    graph = model.graph
    inside = dict.fromkeys(node for node in graph if _tokenwise(node))  # an ordered set
    if not any(node.op_type == "MatMul" for node in inside):
        return 0
    lead = _Lead(model)
    if not all(lead.known(_shape(node.outputs[0])) for node in inside):
        return 0
    flat: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node in inside:
            for index, value in enumerate(node.inputs):
                if value is not None and value.producer() not in inside and _shape(value) is not None:
                    if value not in flat:
                        flat[value] = _down(graph, node, value)
                    node.replace_input_with(index, flat[value])
            if node.op_type == "LayerNormalization":
                node.attributes.add(ir.AttrInt64("axis", -1))
    for node in inside:
        _up(lead, node, inside)
    return _gemms(graph, inside)


def ensures(model: ir.Model) -> None:
    """Nothing is promised."""


def _shape(value: ir.Value | None) -> Shape | None:
    """(batch, sequence, channels) of a value that is computed, with the channels known."""
    shape = dims(value)
    if value is None or shape is None or len(shape) != 3 or constant(value) is not None:
        return None
    return shape if isinstance(shape[2], int) and None not in shape else None


def _tokenwise(node: ir.Node) -> bool:
    out = _shape(node.outputs[0]) if len(node.outputs) == 1 else None
    if out is None or node.domain or node.outputs[0].is_graph_output():
        return False
    first = _shape(node.inputs[0]) if node.inputs else None
    if node.op_type in BROADCAST:
        shapes = [_shape(value) for value in node.inputs]
        vectors = [(array := constant(v)) is not None and array.ndim <= 1 for v in node.inputs]
        return all((s is not None and s[:2] == out[:2]) or v for s, v in zip(shapes, vectors, strict=True))
    if first is None or first[:2] != out[:2]:
        return False
    if node.op_type == "MatMul":
        return len(dims(node.inputs[1]) or ()) == 2 and not _shared_quantizer(node)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return per_tensor(node)
    return node.op_type in UNARY or (node.op_type == "LayerNormalization" and axis(node, -1, 3) == 2)


def _shared_quantizer(node: ir.Node) -> bool:
    """Whether what comes behind the bias is quantized and used in float too: that, onnxruntime fuses as MatMul only."""
    ends = [add for add in node.outputs[0].consumers() if add.op_type == "Add"]
    users = [user for add in ends for user in add.outputs[0].consumers()]
    return len(users) > 1 and any(user.op_type == "QuantizeLinear" for user in users)


def _down(graph: ir.Graph, anchor: ir.Node, value: ir.Value) -> ir.Value:
    """The value as a matrix, before ``anchor``; a reshape that makes it alone makes the matrix instead."""
    shape = _shape(value)
    assert shape is not None
    target = add_constant(graph, f"{anchor.name}_matrix_shape", np.array([-1, shape[2]]))
    node = value.producer()
    if node is not None and node.op_type == "Reshape" and not node.domain:
        return insert_before(anchor, "Reshape", [node.inputs[0], target], f"{node.name}")
    return insert_before(anchor, "Reshape", [value, target], f"{anchor.name}_matrix")


def _up(lead: _Lead, node: ir.Node, inside: dict[ir.Node, None]) -> None:
    """Give the users outside of the region their sequence back; those that reshape it do so from the matrix."""
    value, whole = node.outputs[0], None
    shape = _shape(value)
    assert shape is not None and isinstance(shape[2], int)
    for use in value.uses():
        if use.node in inside:
            continue
        target = constant(use.node.inputs[1]) if use.node.op_type == "Reshape" and use.idx == 0 else None
        if target is not None and target.all():  # it names no dimension of its input: the matrix serves as well
            continue
        if (
            target is not None
            and target.size > 2
            and target[0] == 0
            and target[1] in (0, -1, shape[1])
            and (target[2:] > 0).all()
        ):
            use.node.replace_input_with(1, lead.shape(shape, [int(n) for n in target[2:]]))
            continue
        if whole is None:
            followers = {u.node for u in value.uses() if u.node not in inside}
            follower = next(n for n in lead.graph if n in followers)
            inputs: list[ir.Value | None] = [value, lead.shape(shape, [shape[2]])]
            whole = insert_before(follower, "Reshape", inputs, f"{node.name}_sequence")
        use.node.replace_input_with(use.idx, whole)


class _Lead:
    """Shapes that begin with (batch, sequence), computed once from an input that has both."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.first = next(iter(self.graph))
        self.source = next((v for v in self.graph.inputs if len(dims(v) or ()) >= 2), None)
        self.made: dict[tuple[int | str | None, ...], ir.Value] = {}

    def known(self, shape: Shape | None) -> bool:
        """Whether the first two dimensions are those of the input, or at most one of them is dynamic."""
        source = dims(self.source) or ()
        return shape is not None and (shape[:2] == source[:2] or sum(isinstance(d, str) for d in shape[:2]) < 2)

    def shape(self, shape: Shape | None, rest: list[int]) -> ir.Value:
        """The first two dimensions of ``shape``, then ``rest``."""
        assert shape is not None
        key = (*shape[:2], *rest)
        if key not in self.made:
            name = "/shapes/" + "x".join(str(d) for d in key)
            if sum(isinstance(d, str) for d in key) < 2:
                numbers = np.array([-1 if isinstance(d, str) else d for d in key])
                self.made[key] = add_constant(self.graph, name, numbers)
            else:
                if () not in self.made:
                    ends = {"start": 0, "end": 2}
                    self.made[()] = insert_before(self.first, "Shape", [self.source], "/shapes/Shape", ends)
                tail = add_constant(self.graph, f"{name}_tail", np.array(rest))
                self.made[key] = insert_before(self.first, "Concat", [self.made[()], tail], name, {"axis": 0})
        return self.made[key]


def _gemms(graph: ir.Graph, inside: dict[ir.Node, None]) -> int:
    count = 0
    for node in list(graph):
        if node not in inside or node.op_type != "MatMul":
            continue
        count += 1
        users = node.outputs[0].consumers()
        if len(users) != 1 or users[0].op_type != "Add":
            continue
        add = users[0]
        bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        width = (dims(node.inputs[1]) or (0,))[-1]
        if bias is None or constant(bias) is None or dims(bias) != (width,):
            continue
        stem = (node.name or "").rpartition("/")[0]
        replace(add, insert_before(add, "Gemm", [*node.inputs, bias], f"{stem}/Gemm"))
        graph.remove(node, safe=True)
    return count
