"""What a runtime must know of a model before it loads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

from edgekd.onnxio import files


def signature(path: Path) -> dict[str, Any]:
    """``{"opset", "ir_version", "domains", "operators", "inputs", "outputs"}`` of an ONNX file.

    ``domains`` maps the operator sets besides the standard one to their versions, ``operators`` to the names of those
    that are used. Inputs and outputs are ``{"name",
    "dtype", "shape"}`` with numpy's type names; a dimension is a number, or a name where it is dynamic. Raises
    ``ExportError`` for what is no ONNX file.
    """
    model = files.read(path)
    sets = {found.domain or "ai.onnx": int(found.version) for found in model.opset_import}
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        "opset": sets.pop("ai.onnx"),
        "ir_version": int(model.ir_version),
        "domains": sets,
        "operators": {
            domain: sorted({node.op_type for node in model.graph.node if node.domain == domain}) for domain in sets
        },
        "inputs": _values(value for value in model.graph.input if value.name not in weights),
        "outputs": _values(model.graph.output),
    }


def _values(values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    found = []
    for value in values:
        kind = value.type.tensor_type
        shape = [one.dim_value if one.HasField("dim_value") else one.dim_param or None for one in kind.shape.dim]
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        found.append({"name": value.name, "dtype": dtype, "shape": shape})
    return found
