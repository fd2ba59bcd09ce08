"""Control flow in an exported graph: what always goes one way becomes plain nodes; the rest is told by name.

A scripted function that compares two lengths, or a ``squeeze`` that asks whether a dimension is 1, reaches the file as
an ``If``. The exporter's trace freezes every other branch of the model's code at one example's shape.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgekd.onnxio.audit import session
from edgekd.onnxio.graph import free, replace

SHAPES = ((1, 1), (1, 7), (2, 1), (3, 16))
"""(batch, sequence) of the inputs on which a condition must come out the same to be taken for decided; an image has the
batch only."""


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the one branch that is ever taken in the place of each ``If`` that branches on shapes alone.

    Such a condition is computed for several ``SHAPES`` of the inputs. Where it differs, or depends on what the tensors
    hold, the ``If`` stays. A graph without control flow is returned as it is.
    """
    if left(model) is None:
        return model
    own = onnx.ModelProto()
    own.CopyFrom(model)  # the graph shares its tensors with the message it is read from
    graph = ir.from_proto(own)
    while decided := _decided(graph):
        for node, branch in decided:
            _put(node, node.attributes[branch].as_graph())
    return ir.to_proto(graph)


def left(model: onnx.ModelProto) -> str | None:
    """``name (operator)`` of the first node that holds a graph of its own, if there is one."""
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return f"{node.name} ({node.op_type})"
    return None


def _decided(model: ir.Model) -> list[tuple[ir.Node, str]]:
    """The Ifs whose condition is the same for all inputs, each with the name of the branch that it takes."""
    asked = [node for node in model.graph if node.op_type == "If" and _of_shapes(node.inputs[0])]
    if not asked:
        return []
    proto = ir.to_proto(model)
    names = list(dict.fromkeys(node.inputs[0].name for node in asked if node.inputs[0] is not None))
    del proto.graph.output[:]
    for name in names:
        proto.graph.output.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.BOOL
    runner = session(proto, optimize=False)
    answers = []
    for shape in SHAPES:
        feed = {value.name: _filled(value, shape) for value in proto.graph.input}
        answers.append(dict(zip(names, (bool(found) for found in runner.run(names, feed)), strict=True)))
    found = []
    for node in asked:
        assert node.inputs[0] is not None
        ways = {answer[str(node.inputs[0].name)] for answer in answers}
        if len(ways) == 1:
            found.append((node, "then_branch" if ways.pop() else "else_branch"))
    return found


def _filled(value: onnx.ValueInfoProto, shape: tuple[int, int]) -> np.ndarray:
    kind = value.type.tensor_type
    size = dict(zip(("batch", "sequence"), shape, strict=True))
    whole = [size.get(one.dim_param, one.dim_value) for one in kind.shape.dim]
    return np.full(whole, value.name != "token_type_ids", onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _of_shapes(value: ir.Value | None) -> bool:
    """Whether a value is computed from shapes and constants alone, without control flow."""
    todo, seen = [value], {value}
    while todo:
        value = todo.pop()
        node = value.producer() if value is not None else None
        if node is None:
            if value is not None and value.is_graph_input():
                return False
        elif node.op_type not in ("Shape", "Size"):
            if any(attribute.type is ir.AttributeType.GRAPH for attribute in node.attributes.values()):
                return False
            todo.extend(set(node.inputs) - seen)
            seen.update(node.inputs)
    return True


def _put(node: ir.Node, branch: ir.Graph) -> None:
    """Move the nodes of ``branch`` before ``node``, an If, and let what they compute take its place."""
    graph = node.graph
    assert graph is not None
    outputs, inner, weights = list(branch.outputs), list(branch), list(branch.initializers.values())
    branch.outputs.clear()
    branch.initializers.clear()
    branch.remove(inner)
    for value in weights:
        value.name = free(graph, f"{node.name}/{value.name}")
        graph.register_initializer(value)
    for one in inner:
        for value in one.outputs:
            value.name = free(graph, f"{node.name}/{value.name}")  # two Ifs may use the same names inside
        graph.insert_before(node, one)
    replace(node, *outputs)
