"""Linear layers on matrices, and convolutions, become fully integer.

Requires: ``fold_transpose``.
Does: in a ``Gemm`` (alpha = beta = 1) or ``Conv`` whose two factors are dequantized, replaces the float bias by ``int32
-> DequantizeLinear`` with the scale s_x * s_w and the zero point 0, the only form that onnxruntime makes a ``QGemm`` or
``QLinearConv`` of. A bias may be too large for int32 at that scale, in a channel of nearly zero weights (a folded batch
norm leaves such). That makes a ``Gemm`` ``MatMul`` and ``Add`` instead; in a ``Conv`` the weights of the channel get a
larger scale, at which what they lose is nothing beside the bias.
A ``Relu`` behind a ``Gemm`` becomes ``Max`` with 0, since onnxruntime makes a float ``FusedGemm`` of the two. It stays
where nothing but a ``QuantizeLinear`` follows that cuts at 0 itself: there onnxruntime drops it, and keeps to integers.
Ensures: the bias of every such node is dequantized from int32 with exactly (in float32) that scale.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import add_constant, attribute, constant, insert_before, producer, replace

LIMIT = 2**31 - 1


def run(model: ir.Model) -> int:
    """Return how many biases and activations were rewritten."""
    count = _rectified(model.graph)
    for node in list(model.graph):
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        scale = _scale(node)
        if scale is None or bias is None or bias.dtype != np.float32:
            continue
        if node.op_type == "Conv":
            scale = _roomy(node, bias, scale)
        name = node.inputs[2].name if node.inputs[2] is not None else node.name
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))  # one scale, or one a channel
        if not np.isfinite(steps).all() or np.abs(steps).max(initial=0) > LIMIT:
            _split(node)
        else:
            inputs: list[ir.Value | None] = [
                add_constant(model.graph, f"{name}_int32", steps.astype(np.int32)),
                add_constant(model.graph, f"{name}_scale", scale),
                add_constant(model.graph, f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
            ]
            attributes = {"axis": 0} if scale.ndim else {}
            name = f"{node.name.rpartition('/')[0]}/bias_quant/DequantizeLinear" if node.name else name
            node.replace_input_with(2, insert_before(node, "DequantizeLinear", inputs, name or "bias", attributes))
        count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a bias of another form."""
    for node in model.graph:
        scale = _scale(node)
        if scale is None or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        bias = producer(node.inputs[2], "DequantizeLinear")
        found = constant(bias.inputs[1]) if bias is not None else None
        if found is None or not np.array_equal(found, scale):
            raise ExportError(
                f"{node.name}: the bias is not int32 with the scale s_x * s_w, so the layer stays in float"
            )


def growth(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What to multiply the scale of each channel by, so that ``bias`` fits into int32 at it; 1 where it does."""
    found: np.ndarray = np.maximum(np.abs(bias) / (scale.astype(np.float64) * (LIMIT // 2)), 1)
    return found


def _scale(node: ir.Node) -> np.ndarray | None:
    """s_x * s_w of a Gemm or Conv on two dequantized factors."""
    if node.op_type not in ("Gemm", "Conv") or node.domain or attribute(node, "transA", 0):
        return None
    if any(name in node.attributes and node.attributes[name].as_float() != 1.0 for name in ("alpha", "beta")):
        return None
    factors = [producer(value, "DequantizeLinear") for value in node.inputs[:2]]
    scales = [constant(f.inputs[1]) if f is not None else None for f in factors]
    if scales[0] is None or scales[1] is None or scales[0].ndim:
        return None
    scale: np.ndarray = np.asarray(scales[0] * scales[1], np.float32)
    return scale


def _rectified(graph: ir.Graph) -> int:
    count = 0
    for node in list(graph):
        linear = producer(node.inputs[0], "Gemm") if node.op_type == "Relu" and not node.domain else None
        users = node.outputs[0].consumers()
        if linear is None or _scale(linear) is None or (users and all(map(_cuts_at_zero, users))):
            continue
        zero = add_constant(graph, f"{node.name}_zero", np.array(0, np.float32))
        replace(node, insert_before(node, "Max", [node.inputs[0], zero], node.name or "Max"))
        count += 1
    return count


def _cuts_at_zero(node: ir.Node) -> bool:
    """Whether a node quantizes, with the lowest number standing for 0."""
    point = constant(node.inputs[2]) if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
    return point is not None and bool((point == np.iinfo(point.dtype).min).all())


def _split(node: ir.Node) -> None:
    stem = node.name.rpartition("/")[0] if node.name else ""
    product = insert_before(node, "MatMul", list(node.inputs[:2]), f"{stem}/MatMul")
    replace(node, insert_before(node, "Add", [product, node.inputs[2]], f"{stem}/Add"))


def _roomy(node: ir.Node, bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``scale``, large enough for ``bias`` in every channel: where it was not, the weights get a larger one."""
    weight = producer(node.inputs[1], "DequantizeLinear")
    assert weight is not None and node.graph is not None
    integers, step = constant(weight.inputs[0]), constant(weight.inputs[1])
    assert integers is not None and step is not None
    room = growth(bias, scale)
    if (room == 1).all():
        return scale
    shape = (-1, *[1] * (integers.ndim - 1))
    arrays = {
        "weight": np.rint(integers / room.reshape(shape)).astype(np.int8),
        "weight_scale": (step * room).astype(np.float32),
        "weight_zero_point": np.zeros(room.shape, np.int8),
    }
    inputs: list[ir.Value | None] = [
        add_constant(node.graph, f"{node.name}_{name}", array) for name, array in arrays.items()
    ]
    node.replace_input_with(1, insert_before(node, "DequantizeLinear", inputs, weight.name or "", {"axis": 0}))
    grown = _scale(node)
    assert grown is not None
    return grown
