"""Graph passes: each a file with ``run(model) -> int`` (how much it changed) and ``ensures(model)`` (what holds
afterwards).

A pass's docstring says what it requires, does and ensures. Passes are put in order by name; a name may come twice.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from edgekd.errors import ExportError
from edgekd.onnxio import branches

LEAN = (
    "constants",
    "common_subexpressions",
    "constant_reshape",
    "constant_pads",
    "outer_product",
    "mask_constants",
    "short_chains",
    "dead",
    "first_token",
    "flatten",
)
"""What makes any graph leaner. Float baselines get all of it too, so that int8 is not compared with a clumsy graph."""

FINISH = ("constants", "common_subexpressions", "dead", "names")

FLOAT_PASSES = (*LEAN, *FINISH)

PREPARED = ("constants", "fold_clip", "fold_transpose", "gather_dequantize", "dynamic_matmul")
"""What makes Brevitas' nodes those that runtimes fuse."""

QUANTIZED_PASSES = (*PREPARED, *LEAN, "early_quantize", "gemm_bias", *FINISH)

FOLDED = ("constants", "fold_qdq", "constants", "common_subexpressions", "dead", "names")
"""What makes floats of a shipped graph's integers."""

WIDENED = ("constants", "range_ends", "names")
"""What comes before that for runtimes that find ranges anew for each row."""

ALL = (*QUANTIZED_PASSES, *WIDENED, *FOLDED)
PASSES: dict[str, ModuleType] = {name: import_module(f"{__name__}.{name}") for name in ALL}


def apply(model: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    """Run the named passes in order and return the new model.

    Raises ``ExportError`` for an unknown name, for control flow, and where a pass could not keep its promise; the last
    two name the node.
    """
    unknown = [name for name in names if name not in PASSES]
    if unknown:
        raise ExportError(f"unknown graph pass {unknown[0]!r}; the passes are {', '.join(sorted(PASSES))}")
    if (node := branches.left(model)) is not None:
        raise ExportError(
            f"{node} holds a graph of its own: models that branch or loop on data are not supported; choose another "
            "architecture"
        )
    own = onnx.ModelProto()
    own.CopyFrom(model)  # the graph shares its tensors with the message it is read from, names included
    graph = ir.from_proto(own)
    for name in names:
        PASSES[name].run(graph)
        PASSES[name].ensures(graph)
    ClearMetadataAndDocStringPass()(graph)  # stack traces and the like
    result: onnx.ModelProto = ir.to_proto(graph)
    del result.graph.value_info[:]  # shapes were for the passes: the runtime infers its own, the file stays small
    return result
