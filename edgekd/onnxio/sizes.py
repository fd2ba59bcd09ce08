"""Where the bytes of an ONNX file are."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from edgekd.onnxio import files
from edgekd.onnxio.names import module_path

LINEAR = {
    "Conv", "ConvInteger", "Gemm", "LSTM", "MatMul", "MatMulInteger", "MatMulNBits", "QGemm", "QLinearConv",
    "QLinearMatMul",
}  # fmt: skip
NORM = {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"}


def table(path: Path) -> list[dict[str, Any]]:
    """One row per stored tensor, largest first: ``tensor``, ``dtype``, ``shape``, ``bytes``, ``kind`` and ``users``.

    ``kind`` is ``embedding``, ``linear``, ``norm`` or ``other``, after the module that uses the tensor first. ``users``
    is how many nodes read it, as it is or dequantized: it is stored and counted once. A last row of kind ``graph``
    holds the rest of the file (nodes, names), so that the bytes add up to its size. Raises ``ExportError`` for a file
    that is no model.
    """
    model = files.read(path)
    kinds = _kinds(model)
    users: dict[str, str] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, _module(node))
    counts = _users(model)
    rows: list[dict[str, Any]] = []
    for tensor in model.graph.initializer:
        rows.append(
            {
                "tensor": tensor.name,
                "dtype": dtype(tensor),
                "shape": list(tensor.dims),
                "bytes": size(tensor),
                "kind": kinds.get(users.get(tensor.name, ""), "other"),
                "users": counts[tensor.name],
            }
        )
    rows.sort(key=lambda row: (-row["bytes"], row["tensor"]))
    rest = path.stat().st_size - sum(row["bytes"] for row in rows)
    graph = {"tensor": "nodes and names", "dtype": "", "shape": [], "bytes": rest, "kind": "graph", "users": None}
    return [*rows, graph]


def _users(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes read each tensor; those behind a ``DequantizeLinear`` count, and not that itself."""
    counts = Counter(name for node in model.graph.node for name in {*node.input})
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            counts[node.input[0]] += counts[node.output[0]] - 1
    return counts


def dtype(tensor: onnx.TensorProto) -> str:
    """What its numbers are, as ONNX calls it: ``float``, ``int8``."""
    return str(onnx.TensorProto.DataType.Name(tensor.data_type)).lower()


def size(tensor: onnx.TensorProto) -> int:
    """Bytes."""
    count = math.prod(tensor.dims)
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return int(count + 1) // 2
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _module(node: onnx.NodeProto) -> str:
    parts = module_path(node.name).split(".")[:-1]
    while parts and parts[-1].endswith("_quant"):
        parts.pop()
    return ".".join(parts)


def _kinds(model: onnx.ModelProto) -> dict[str, str]:
    """Module path -> kind, for modules that multiply with, normalize by or look up in stored tensors."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            stored.add(node.output[0])
    kinds: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in LINEAR and stored.intersection(node.input[1:]):
            kinds[_module(node)] = "linear"
        elif node.op_type in NORM:
            kinds[_module(node)] = "norm"
        elif node.op_type in ("Gather", "GatherBlockQuantized") and node.input[0] in stored:
            kinds[_module(node)] = "embedding"
    return kinds
