"""Every scale and zero point of an exported file, compared with the quantizer that it stands for.

A wrong one may change the answers too little for any comparison of answers. Nodes are matched with quantizers by the
module path in their names (``passes.names``), never by the names of initializers: equal ones are stored once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgekd.errors import ExportError
from edgekd.onnxio.names import located, module_path
from edgekd.onnxio.passes.gemm_bias import growth
from edgekd.quant import grids
from edgekd.quant.grids import Grid

RTOL = 1e-6
"""Relative; a product of two float32 numbers is rounded by a tenth of it."""
SCALES = {"Mul": 1, "Cast": 0}
"""Which input of a node of this type, called after a weight's quantizer, is the weight's scale."""
ADVICE = "the file does not compute what was trained: export it again, and report this message if it stays"


class _File:
    """A graph's constants by name, and the nodes that make and read each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made = {name: node for node in self.nodes for name in node.output}
        self.readers = {name: node for node in self.nodes for name in node.input}

    def constant(self, name: str) -> NDArray[Any] | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def grid(self, node: onnx.NodeProto) -> Grid:
        """The scale and zero point that a Q or DQ node reads."""
        point = node.input[2] if len(node.input) > 2 else ""
        scale, zero_point = self.constant(node.input[1]), self.constant(point) if point else np.zeros(1)
        if scale is None or zero_point is None:
            raise ExportError(f"{node.name}: its scale or zero point is computed, not stored; {ADVICE}")
        return Grid(scale, zero_point)

    def source(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node that quantized what a DQ node reads, ``None`` for what is stored as integers.

        What stands between (reshapes, slices, a maximum, a look-up of rows) has the integers as its first input.
        """
        before = self.made.get(node.input[0])
        while before is not None and "QuantizeLinear" not in before.op_type:
            before = self.made.get(before.input[0]) if before.input else None
        return before


def check(model: nn.Module, graph: onnx.ModelProto) -> None:
    """Compare every scale and zero point of ``graph`` with what the quantizers of ``model`` say, to float rounding.

    A weight's scale in a convolution may be larger, as ``passes.gemm_bias`` makes it; a bias has the product of its
    node's other two scales and the zero point 0; what dequantizes computed integers reads what quantized them.
    Raises ``ExportError`` that names the tensor that differs, or the node that belongs to no quantizer.
    """
    file, biases = _File(graph), []
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for node in file.nodes:
        path = _whole(module_path(located(node.name, modules)), modules)
        if node.op_type == "QuantizeLinear":
            _compare(node.input[1:], file.grid(node), _trained(model, node, path), path)
        elif node.op_type == "DequantizeLinear":
            source = file.source(node)
            if source is None and path.endswith(".bias_quant"):
                biases.append(node)
            elif source is None:
                _compare(node.input[1:], file.grid(node), _trained(model, node, path), path)
            elif source.op_type == "QuantizeLinear":
                _compare(node.input[1:], file.grid(node), file.grid(source), source.name)
        elif node.op_type in SCALES and path.endswith(".weight_quant"):
            name = node.input[SCALES[node.op_type]]
            scale = file.constant(name)
            if scale is None:
                raise ExportError(f"{node.name}: {name} is computed, not stored; {ADVICE}")
            trained = _trained(model, node, path)
            _compare([name], Grid(scale, trained.zero_point), trained, path)
    for node in biases:  # last: a wrong factor is to be named itself
        reader = file.readers.get(node.output[0])
        factors = [file.made.get(name) for name in reader.input[:2]] if reader is not None else []
        if reader is None or [f.op_type for f in factors if f is not None] != ["DequantizeLinear"] * 2:
            raise ExportError(f"{node.name}: a bias in integers beside factors that are not; {ADVICE}")
        one, other = (file.grid(factor).scale for factor in factors if factor is not None)
        _compare(node.input[1:], file.grid(node), Grid(one * other, np.zeros(1)), f"the factors of {reader.name}")


def check_added(before: onnx.ModelProto, after: onnx.ModelProto, added: Mapping[str, Grid]) -> None:
    """``after`` is ``before`` with the tensors ``added`` quantized by these grids (``requantize``), and all else equal.

    Raises ``ExportError`` that names the constant that differs, or the node that quantizes another tensor.
    """
    old, new = _File(before), _File(after)
    for name in old.tensors.keys() & new.tensors.keys():
        if not np.array_equal(*(file.constant(name) for file in (old, new))):  # type: ignore[arg-type]
            raise ExportError(f"{name} has changed while other tensors were quantized; {ADVICE}")
    known = {node.name for node in old.nodes}
    for node in new.nodes:
        if node.name in known or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source = node if node.op_type == "QuantizeLinear" else new.source(node)
        if source is None or source.input[0] not in added:
            raise ExportError(f"{node.name} quantizes what was not to be quantized; {ADVICE}")
        tensor = source.input[0]
        _compare(node.input[1:], new.grid(node), added[tensor], f"the range observed of {tensor}")


def _whole(path: str, modules: Collection[str]) -> str:
    """``path``, or the one module's path that it is without what stands between: the exporter leaves out whose forward
    is not called (``quant.replace.Table``)."""
    parts = path.split(".")
    known = max(n for n in range(len(parts) + 1) if n == 0 or ".".join(parts[:n]) in modules)
    head, rest = (".".join(part) for part in (parts[:known], parts[known:]))
    inside = [name for name in modules if rest and name.startswith(f"{head}.") and name.endswith(f".{rest}")]
    return inside[0] if len(inside) == 1 else path


def _trained(model: nn.Module, node: onnx.NodeProto, path: str) -> Grid:
    found = grids.of(model, path)
    if found is None:
        raise ExportError(f"{node.name}: the model has no quantizer {path} with a scale of its own; {ADVICE}")
    layer: Any = model.get_submodule(path.rpartition(".")[0])
    own = grids.of(model, path.replace("weight_quant", "input_quant"))
    if isinstance(layer, nn.Conv2d) and path.endswith(".weight_quant") and layer.bias is not None and own is not None:
        room = growth(layer.bias.detach().cpu().numpy(), found.scale * own.scale)
        return Grid((found.scale * (room if (room > 1).any() else 1)).astype(np.float32), found.zero_point)
    return found


def _compare(names: Any, found: Grid, expected: Grid, where: str) -> None:
    for name, one, other, rtol in zip(names, found, expected, (RTOL, 0.0), strict=False):
        one, other = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
        if one.size != other.size and (rtol or other.size > 1):
            raise ExportError(f"{name} holds {one.size} numbers in the file, and {where} has {other.size}; {ADVICE}")
        wrong = ~np.isclose(one, other, rtol=rtol, atol=0)
        if wrong.any():
            place = int(wrong.argmax())
            raise ExportError(
                f"{name} is {one[place]:.7g} in the file, and {np.broadcast_to(other, one.shape)[place]:.7g} by {where}"
                + (f" ({wrong.sum()} of {one.size} numbers differ)" if one.size > 1 else "")
                + f"; {ADVICE}"
            )
