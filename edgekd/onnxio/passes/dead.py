"""Drop what no output needs.

Requires: nothing.
Does: removes nodes and initializers that lead to no graph output, and operator sets that no node uses.
Ensures: every node and initializer is used.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from edgekd.errors import ExportError


def run(model: ir.Model) -> int:
    """Return how many nodes and initializers went."""
    before = len(list(model.graph)) + len(model.graph.initializers)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    return before - len(list(model.graph)) - len(model.graph.initializers)


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for an unused node or initializer."""
    for node in model.graph:
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            raise ExportError(f"{node.name}: nothing uses this node")
    for name, value in model.graph.initializers.items():
        if not value.uses() and not value.is_graph_output():
            raise ExportError(f"{name}: nothing uses this initializer")
