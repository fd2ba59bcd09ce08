"""A product over an inner dimension of one adds nothing up.

Requires: nothing.
Does: turns a ``MatMul`` of (..., M, 1) and (..., 1, N) into ``Mul``, which broadcasts to the same numbers. Rotary
position embeddings multiply positions and frequencies so, in every layer.
Ensures: nothing more.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekd.onnxio.graph import dims, infer, insert_before, replace


def run(model: ir.Model) -> int:
    """Return how many multiplications of matrices were none."""
    infer(model)
    count = 0
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain:
            continue
        left, right = (dims(value) or () for value in node.inputs)
        if len(left) > 1 and len(right) > 1 and 1 in (left[-1], right[-2]):  # equal; one of them may not be known
            replace(node, insert_before(node, "Mul", list(node.inputs), node.name or "Mul"))
            count += 1
    return count


def ensures(model: ir.Model) -> None:
    """Nothing is promised."""
