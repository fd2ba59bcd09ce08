"""Names that lead back to the torch modules.

Requires: nothing; runs last.
Does: strips what the exporter wrapped around the names; names each value after the node that computes it, and each
initializer after the module and the role it has there (``bert.pooler.dense.weight_scale``).
Ensures: node names are unique, start with ``/`` and hold the module path, and graph inputs and outputs keep their
names.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio.names import module_path

WRAPPER = "wrapped"
"""The attribute under which the exporter's wrapper holds the model (``edgekd.onnxio.export``)."""

NOISE = re.compile(rf"/(export_handler(_\d+)?|{WRAPPER})(?=/)")
ROLES = {
    "MatMul": ("", "weight"),
    "Gemm": ("", "weight", "bias"),
    "Conv": ("", "weight", "bias"),
    "Gather": ("weight", "index"),
    "LayerNormalization": ("", "weight", "bias"),
    "Reshape": ("", "shape"),
    "Transpose": ("weight",),
    "QuantizeLinear": ("", "scale", "zero_point"),
    "DequantizeLinear": ("", "scale", "zero_point"),
    "MatMulInteger": ("", "weight"),
    "MatMulNBits": ("", "weight", "", "", "", "bias"),
    "GatherBlockQuantized": ("weight", "index"),
}
KINDS = {"weight_quant": "weight", "input_quant": "input", "bias_quant": "bias", "output_quant": "output"}


def run(model: ir.Model) -> int:
    """Return how many names changed."""
    graph, count = model.graph, 0
    taken: set[str] = set()
    fixed = {value.name for value in [*graph.inputs, *graph.outputs]}
    for node in graph:
        name = NOISE.sub("", node.name or node.op_type)
        name = _unique(name if name.startswith("/") else f"/{name}", taken)
        count += name != node.name
        node.name = name
        for index, value in enumerate(node.outputs):
            if value.name not in fixed and value.name:
                value.name = name if index == 0 else f"{name}:{index}"
    initializers = list(graph.initializers.values())
    for number, value in enumerate(initializers):
        old = value.name or ""
        if value.name in fixed:
            continue
        value.name = f"#{number}"  # out of the way first, so that new names cannot meet old ones
        value.meta["old"] = old
    for value in initializers:
        if value.name in fixed:
            continue
        old = value.meta.pop("old")
        name = _unique(_role(value, old), taken)
        count += name != old
        value.name = name
    return count


def ensures(model: ir.Model) -> None:
    """Raise ``ExportError`` for a node without a name of its own."""
    names = [node.name for node in model.graph]
    for name in names:
        if not name or not name.startswith("/") or names.count(name) > 1:
            raise ExportError(f"{name!r}: a node's name must be its own and start with /")


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique)
    return unique


def _role(value: ir.Value, old: str) -> str:
    """A parameter keeps its torch name; anything else is named by the first node that uses it."""
    plain = old.removeprefix(f"{WRAPPER}.")
    uses = list(value.uses())
    if not uses or not ("/" in plain or "::" in plain or plain == ""):
        return plain or "constant"
    node, index = uses[0]
    module, _, _ = module_path(node.name or "").rpartition(".")
    roles = ROLES.get(node.op_type, ())
    role = roles[index] if index < len(roles) else f"{node.op_type.lower()}_{index}"
    parent, _, last = module.rpartition(".")
    if node.op_type in ("Cast", "Mul") and last in KINDS:  # scales alone are cast (from float16) or multiplied there
        role = "scale"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "Mul") and last in KINDS:
        return f"{parent}.{KINDS[last]}" + (f"_{role}" if role else "")
    return f"{module}.{role or node.op_type.lower()}".lstrip(".")
