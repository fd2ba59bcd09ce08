"""``Add -> LayerNormalization`` as onnxruntime's own ``SkipLayerNormalization``, in an exported graph.

onnxruntime fuses the two itself where it can tell that both summands have one shape, which it cannot in our graphs. So
`edgekd tune` puts the operator there, to see what it would be worth.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import constant, dims, infer, insert_before, producer, replace

DOMAIN = "com.microsoft"


def apply(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with that operator where a sum of two computed tensors of one shape is normalized and not used else.

    The one given is not changed. Raises ``ExportError`` where it has no such place.
    """
    own = onnx.ModelProto()
    own.CopyFrom(model)
    graph = ir.from_proto(own)
    infer(graph)
    places = [(node, add) for node in graph.graph if (add := _sum(node)) is not None]
    if not places:
        raise ExportError("there is no sum of two tensors of one shape in front of a LayerNormalization")
    for node, add in places:
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        inputs = [*add.inputs, *node.inputs[1:]]
        name = f"{(node.name or '').rpartition('/')[0]}/SkipLayerNormalization"
        replace(node, insert_before(node, "SkipLayerNormalization", inputs, name, {"epsilon": epsilon}, DOMAIN))
        graph.graph.remove(add, safe=True)
    graph.graph.opset_imports[DOMAIN] = 1
    result: onnx.ModelProto = ir.to_proto(graph)
    del result.graph.value_info[:]
    return result


def _sum(node: ir.Node) -> ir.Node | None:
    """The sum that a LayerNormalization with scale and bias reads alone, of two computed tensors of one shape."""
    if node.op_type != "LayerNormalization" or len(node.inputs) != 3:
        return None
    add = producer(node.inputs[0], "Add")
    if add is None or len(add.outputs[0].uses()) != 1 or any(constant(value) is not None for value in add.inputs):
        return None
    shape = dims(add.inputs[0])
    return add if shape is not None and shape == dims(add.inputs[1]) else None
