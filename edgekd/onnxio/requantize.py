"""More of an exported graph in int8 than its training had: attention's products, outputs of linear layers.

They are no modules, so nothing stands for them in training. Their ranges are observed in the graph itself, and put into
it as ``QuantizeLinear -> DequantizeLinear``: onnxruntime moves the pair up through reshapes and transposes, and fuses
it into the products on either side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch

from edgekd.distill.data import Tokens
from edgekd.errors import ExportError
from edgekd.globs import named_in
from edgekd.onnxio.audit import session, signed
from edgekd.onnxio.graph import add_constant, constant, insert_before, producer
from edgekd.onnxio.names import module_path
from edgekd.quant.grids import Grid
from edgekd.quant.observe import Histogram, choose, usable

Place = tuple[str, tuple[str, ...]]
"""A tensor, and the nodes that are to read it quantized, by their names."""


def attention(model: onnx.ModelProto, keep_float: Iterable[str] = ()) -> list[Place]:
    """The factors of the products of two computed tensors: queries and keys, probabilities and values.

    Not those that ``keep_float`` names, by globs over the paths of nodes.
    """
    patterns = tuple(keep_float)
    found: list[Place] = []
    for node in _graph(model).graph:
        if node.op_type != "MatMul" or node.domain or named_in(module_path(node.name or ""), patterns):
            continue
        if not any(constant(value) is not None or producer(value, "DequantizeLinear") for value in node.inputs):
            found += [(str(value.name), (str(node.name),)) for value in dict.fromkeys(node.inputs) if value is not None]
    return found


def outputs(model: onnx.ModelProto) -> list[Place]:
    """What the int8 linear layers give to one other node, unless it is the model's answer or quantized there anyway.

    Where several nodes read it, as in GELU, the pair would stand in the way of their fusion.
    """
    found: list[Place] = []
    for node in _graph(model).graph:
        if node.op_type in ("Gemm", "MatMul") and all(producer(v, "DequantizeLinear") for v in node.inputs[:2]):
            value, users = node.outputs[0], list(node.outputs[0].consumers())
            if not value.is_graph_output() and len(users) == 1 and users[0].op_type != "QuantizeLinear":
                found.append((str(value.name), (str(users[0].name),)))
    return found


def grids(
    model: onnx.ModelProto, places: Sequence[Place], calibration: Tokens, method: str, percentile: float
) -> dict[str, Grid]:
    """Scale and zero point of each tensor, from its range in the model on the examples.

    ``method`` and ``percentile`` are as in ``spec.Quant``; activations are signed where those of the model are. Raises
    ``ExportError`` for a tensor that has no range.
    """
    symmetric = signed(model)
    ranges = _observe(model, sorted({tensor for tensor, _ in places}), calibration, method, percentile, symmetric)
    return {name: _grid(low, high, symmetric) for name, (low, high) in ranges.items()}


def put(model: onnx.ModelProto, places: Sequence[Place], chosen: Mapping[str, Grid]) -> onnx.ModelProto:
    """The model with those tensors quantized so; the one given is not changed."""
    own = _graph(model)
    values = {value.name: value for node in own.graph for value in node.outputs}
    for tensor, users in places:
        _quantize(own.graph, values[tensor], users, chosen[tensor])
    return ir.to_proto(own)


def _graph(model: onnx.ModelProto) -> ir.Model:
    own = onnx.ModelProto()
    own.CopyFrom(model)  # the graph shares its tensors with the message it is read from
    return ir.from_proto(own)


def _observe(
    model: onnx.ModelProto, tensors: list[str], calibration: Tokens, method: str, percentile: float, symmetric: bool
) -> dict[str, tuple[float, float]]:
    """(low, high) of each tensor over the examples, which go through the graph one by one, without padding."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    runner, inputs = session(opened), [value.name for value in model.graph.input]
    histograms = {name: Histogram() for name in tensors}
    for row in range(len(calibration)):
        found = runner.run(tensors, calibration.feed(np.array([row]), inputs))
        for name, array in zip(tensors, found, strict=True):
            histograms[name].observe(torch.from_numpy(array))
    ranges = {name: choose(seen, method, percentile, symmetric) for name, seen in histograms.items()}
    for name, (low, high) in ranges.items():
        if not usable(low, high):
            raise ExportError(f"{name} has the range [{low}, {high}]: it cannot be quantized; name it in keep_float")
    return ranges


def _grid(low: float, high: float, symmetric: bool) -> Grid:
    step = high / 127 if symmetric else (high - low) / 255
    point = np.array(0, np.int8) if symmetric else np.array(round(-low / step), np.uint8)
    return Grid(np.array(step, np.float32), point)


def _quantize(graph: ir.Graph, value: ir.Value, users: Collection[str], grid: Grid) -> None:
    scale = add_constant(graph, f"{value.name}_scale", grid.scale)
    zero = add_constant(graph, f"{value.name}_zero_point", grid.zero_point)
    reading = [node for node in graph if node.name in users and value in node.inputs]
    integers = insert_before(reading[0], "QuantizeLinear", [value, scale, zero], f"{value.name}/QuantizeLinear")
    floats = insert_before(reading[0], "DequantizeLinear", [integers, scale, zero], f"{value.name}/DequantizeLinear")
    for node in reading:
        for index, used in enumerate(node.inputs):
            if used is value:
                node.replace_input_with(index, floats)
