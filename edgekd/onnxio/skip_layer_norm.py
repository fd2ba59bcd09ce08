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
    count = 0
    for node in list(graph.graph):
        add = (
            producer(node.inputs[0], "Add") if node.op_type == "LayerNormalization" and len(node.inputs) == 3 else None
        )
        if add is None or len(add.outputs[0].uses()) != 1 or any(constant(value) is not None for value in add.inputs):
            continue
        shape = dims(add.inputs[0])
        if shape is None or shape != dims(add.inputs[1]):
            continue
        stem = (node.name or "").rpartition("/")[0]
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        inputs = [*add.inputs, *node.inputs[1:]]
        name = f"{stem}/SkipLayerNormalization"
        made = insert_before(node, "SkipLayerNormalization", inputs, name, {"epsilon": epsilon}, DOMAIN)
        made.shape = node.outputs[0].shape
        replace(node, made)
        graph.graph.remove(add, safe=True)
        count += 1
    if not count:
        raise ExportError("there is no sum of two tensors of one shape in front of a LayerNormalization")
    graph.graph.opset_imports[DOMAIN] = 1
    result = ir.to_proto(graph)
    del result.graph.value_info[:]
    return result

