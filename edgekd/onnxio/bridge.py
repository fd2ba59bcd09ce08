"""An exported graph as a torch module: what converters that start from torch (LiteRT's, ExecuTorch's) are given.

So they convert the very file that is shipped, with what the graph passes made of it, and not the model that it once
was. Integers that describe shapes stay Python's own: ``torch.export`` can leave them open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.transformers.fusion_gelu import FusionGelu
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor, nn

from edgekd.errors import ExportError
from edgekd.onnxio.graph import dequantized
from edgekd.onnxio.operators import OPERATORS

Array = NDArray[Any]
Factor = tuple[str, str]
"""A product, by its node's name, and a tensor that it reads quantized."""


class Graph(nn.Module):
    """Answers as the graph does: its ``logits``, or else its first output.

    Raises ``ExportError`` for an operator that it has no counterpart for.
    """

    operators: Mapping[str, Callable[..., Any]] = OPERATORS

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        own = onnx.ModelProto()
        own.CopyFrom(model)
        fused = OnnxModel(own)
        FusionGelu(fused).apply()  # converters know the function, and not what opset 17 makes of it
        fused.topological_sort()
        graph = fused.model.graph
        self.inputs = tuple(value.name for value in graph.input)
        outputs = [value.name for value in graph.output]
        self.output = "logits" if "logits" in outputs else outputs[0]
        self.nodes = [(node, _attributes(node)) for node in graph.node]
        missing = sorted({node.op_type for node in graph.node} - self.operators.keys())
        if missing:
            raise ExportError(f"no torch counterpart of the operators {', '.join(missing)}: this graph stays ONNX")
        ends = {name for node in graph.node if node.op_type in ("Clip", "Pad") for name in node.input[1:]}
        self.constants: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim < 2 and (array.dtype == np.int64 or tensor.name in ends):
                self.constants[tensor.name] = array.tolist()
            else:
                self.hold(tensor.name, torch.from_numpy(array.copy()))

    def hold(self, name: str, tensor: Tensor) -> None:
        """Let ``tensor`` be what ``name`` stands for."""
        buffer = self.names.setdefault(name, f"c{len(self.names)}")
        self.register_buffer(buffer, tensor)

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """What the graph answers to its inputs, in order or by their names."""
        held = {name: getattr(self, buffer) for name, buffer in self.names.items()}
        return self.answer(dict(zip(self.inputs, given, strict=False)) | named | self.constants | held)

    def answer(self, known: dict[str, Any]) -> Tensor:
        """What the graph answers where its inputs and constants are ``known``."""
        for node, attributes in self.nodes:
            arguments = [known[name] if name else None for name in node.input]
            found = self.operators[node.op_type](attributes, *arguments)
            known |= dict(zip(node.output, found if isinstance(found, tuple) else (found,), strict=False))
        answer: Tensor = known[self.output]
        return answer


@dataclass(frozen=True)
class Stored:
    """A weight in int8: ``scale`` is of its rows, or one; ``table``: rows are looked up in it."""

    name: str
    integers: Array
    scale: Array
    table: bool


def stored(model: onnx.ModelProto) -> dict[bytes, Stored]:
    """The weights that a graph holds in int8, by the floats that they stand for, as bytes.

    Matrices are turned, so that their rows are what is computed, as in torch's linear layers.
    """
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    readers = {name: node for node in model.graph.node for name in node.input}
    found: dict[bytes, Stored] = {}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":  # its product is cast, then scaled
            factor = made[readers[readers[node.output[0]].output[0]].input[1]]
            weight, scale = (numpy_helper.to_array(arrays[name]) for name in (node.input[1], factor.input[1]))
            found |= _stored(node.input[1], weight.T, scale, table=False)
        source = node.input[0] if node.op_type == "DequantizeLinear" else ""
        while source in made and made[source].op_type in ("Gather", "Reshape"):  # rows of a table
            source = made[source].input[0]
        if source not in arrays or arrays[source].data_type != onnx.TensorProto.INT8:
            continue
        weight, scale = (numpy_helper.to_array(arrays[name]) for name in (source, node.input[1]))
        table = source != node.input[0]
        if scale.ndim and table:
            continue  # a scale for each of a row's channels, and not for each row
        if scale.ndim:
            weight = np.moveaxis(weight, _attributes(node).get("axis", 1), 0)
        elif not table and weight.ndim == 2:
            found |= _stored(source, weight.T, scale, table)  # who reads it may turn it, or not
        found |= _stored(source, weight, scale, table)
    return found


def check_int8(model: onnx.ModelProto, known: Mapping[bytes, Stored], int8: Set[str], runtime: str) -> None:
    """Raise ``ExportError`` where ``runtime`` would compute in float what ``model`` computes in int8.

    That is a matrix of ``known`` that is not among the names that it has in ``int8``, or a product of two activations:
    a folded graph has none of those left.
    """
    lost = sorted({weight.name for weight in known.values() if not weight.table} - int8)
    lost += dict.fromkeys(node for node, _ in factors(model))
    if lost:
        raise ExportError(f"{lost[0]} ({len(lost)} in all) is int8 in the graph and would be float in {runtime}")


def factors(model: onnx.ModelProto) -> list[Factor]:
    """The factors of products of two computed tensors that stand behind a QuantizeLinear and a DequantizeLinear."""
    sources = quantized(model)
    return [
        (node.name, sources[name])
        for node in model.graph.node
        if node.op_type == "MatMul" and not node.domain and all(name in sources for name in node.input)
        for name in dict.fromkeys(node.input)
    ]


def quantized(model: onnx.ModelProto) -> dict[str, str]:
    """What stands behind a QuantizeLinear and a DequantizeLinear at once -> what stands before them."""
    quantized = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    behind = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in quantized]
    return {node.output[0]: quantized[node.input[0]] for node in behind}


def _stored(name: str, weight: Array, scale: Array, table: bool) -> dict[bytes, Stored]:
    weight = np.ascontiguousarray(weight)
    of_rows = scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale
    floats = dequantized(weight, of_rows, np.zeros((), np.int8))
    return {floats.tobytes(): Stored(name, weight, scale, table)}


def multiplied(model: onnx.ModelProto, known: Mapping[bytes, Stored]) -> dict[str, str]:
    """What the products of a folded graph give -> the constant they multiply with, by the name it was stored under."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    for node in model.graph.node:
        for name in node.input[:2] if node.op_type in ("Conv", "Gemm", "MatMul") else ():
            if name in arrays:
                array = arrays[name]
                weight = known.get(array.tobytes()) or known.get(np.ascontiguousarray(array.T).tobytes())
                found[node.output[0]] = weight.name if weight else name
    return found


def names(model: onnx.ModelProto) -> dict[bytes, str]:
    """The names of a graph's weights by their bytes, matrices turned and not."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    turned = {np.ascontiguousarray(array.T).tobytes(): name for name, array in arrays.items() if array.ndim == 2}
    return turned | {array.tobytes(): name for name, array in arrays.items() if array.ndim > 1}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return {name: numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for name, x in found.items()}
