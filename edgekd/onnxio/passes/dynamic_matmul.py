"""Ranges found at run time, products of integers.

Requires: ``constants``, ``fold_clip``, ``fold_transpose``; runs before ``first_token``.
Does: a ``MatMul`` or ``Gemm`` of a tensor that ``DynamicQuantizeLinear`` quantizes and of a dequantized weight becomes
``MatMulInteger -> Cast -> Mul`` (``-> Add`` of the bias), of which onnxruntime makes ``DynamicQuantizeMatMul``, or
``MatMulIntegerToFloat`` where several multiplications share the quantized tensor. It makes these of a dequantized
``MatMul`` too, but not of a ``Gemm``, nor of ``MatMul`` and ``Add`` over two axes, which it joins to a ``Gemm``: our
linear layers with their bias it would compute in float.
Ensures: no multiplication reads a tensor that was quantized at run time and dequantized again.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.graph import add_constant, attribute, constant, insert_before, producer, replace


def run(model: ir.Model) -> int:
    """Return how many multiplications were rewritten."""
    count = 0
    for node in list(model.graph):
        left = _dynamic(node)
        right = producer(node.inputs[1], "DequantizeLinear") if left is not None else None
        if left is None or right is None or attribute(node, "transA", 0) or attribute(node, "transB", 0):
            continue
        weight, scale = constant(right.inputs[0]), constant(right.inputs[1])
        zero = constant(right.inputs[2]) if len(right.inputs) > 2 else None
        if weight is None or scale is None or (zero is not None and zero.any()):
            continue
        stem = (node.name or "").rpartition("/")[0]
        quantized, step, point = left.inputs
        stored = add_constant(model.graph, f"{stem}/weight_scale", np.asarray(scale))
        product = insert_before(node, "MatMulInteger", [quantized, right.inputs[0], point], f"{stem}/MatMulInteger")
        floats = insert_before(node, "Cast", [product], f"{stem}/Cast", {"to": int(ir.DataType.FLOAT)})
        factor = insert_before(node, "Mul", [step, stored], f"{stem}/weight_quant/Mul")
        value = insert_before(node, "Mul", [floats, factor], f"{stem}/Mul")
        if len(node.inputs) > 2:
            value = insert_before(node, "Add", [value, node.inputs[2]], f"{stem}/Add")
        replace(node, value)
        count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a multiplication in float of what was quantized at run time."""
    for node in model.graph:
        if _dynamic(node) is not None:
            raise ExportError(
                f"{node.name}: multiplies in float what was quantized at run time; its weight must be symmetric int8"
            )


def _dynamic(node: ir.Node) -> ir.Node | None:
    """The node that dequantizes the left factor of a product, if that is quantized at run time."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return None
    left = producer(node.inputs[0], "DequantizeLinear")
    return left if left is not None and producer(left.inputs[0], "DynamicQuantizeLinear") is not None else None
