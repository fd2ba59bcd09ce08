"""One home for constants: initializers, each stored once.

Requires: nothing.
Does: turns ``Constant`` nodes into initializers, drops ``Identity`` nodes, and merges initializers with equal type,
shape and content. (The exporter leaves an ``Identity`` where two parameters are equal, and a new constant for every
zero point.)
Ensures: no ``Constant`` node is left, and no two initializers are equal.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass, IdentityEliminationPass, LiftConstantsToInitializersPass

from edgekd.errors import ExportError

NO_LIMIT = 2**62


def run(model: ir.Model) -> int:
    """Return how many nodes and initializers went."""
    before = _count(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    IdentityEliminationPass()(model)
    DeduplicateInitializersPass(size_limit=NO_LIMIT)(model)
    return before - _count(model)


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a ``Constant`` node."""
    for node in model.graph:
        if node.op_type == "Constant" and node.domain == "":
            raise ExportError(
                f"{node.name}: a constant is left that is no initializer (sparse or text tensors are not supported)"
            )


def _count(model: ir.Model) -> int:
    return len(list(model.graph)) + len(model.graph.initializers)
