"""More of a finished graph in int8 than its training had: what `edgekd tune` tries without training anew.

The ranges are observed in the graph itself, run on calibration examples, and each is put into it as ``QuantizeLinear ->
DequantizeLinear``. onnxruntime moves the pair up through reshapes and transposes and fuses it into the products on
either side of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgekd.errors import ExportError
from edgekd.onnxio.audit import session, signed
from edgekd.onnxio.graph import add_constant, constant, insert_before, producer
from edgekd.quant.observe import Histogram, choose

Feed = dict[str, NDArray[Any]]
Place = tuple[ir.Value, list[ir.Node]]
"""A tensor, and those of its users that are to read it quantized."""


def attention(graph: ir.Graph) -> Iterator[Place]:
    """The factors of every product of two tensors that are computed: queries, keys, probabilities, values."""
    for node in graph:
        if _product(node, "MatMul") and not any(producer(v, "DequantizeLinear") for v in node.inputs):
            for value in dict.fromkeys(node.inputs):
                assert value is not None
                yield value, [node]


def outputs(graph: ir.Graph) -> Iterator[Place]:
    """What the int8 linear layers give, unless it is the model's answer."""
    for node in graph:
        if node.op_type in ("Gemm", "MatMul") and all(producer(v, "DequantizeLinear") for v in node.inputs[:2]):
            value = node.outputs[0]
            if not value.is_graph_output() and value.uses():
                yield value, list(value.consumers())


WHERE = {"attention": attention, "outputs": outputs}


def apply(
    model: onnx.ModelProto, where: Iterable[str], feeds: Sequence[Feed], method: str, percentile: float
) -> onnx.ModelProto:
    """The model with the tensors of ``where`` (names in ``WHERE``) quantized statically; the one given is not changed.

    ``feeds`` are calibration examples without padding (int64 (1, tokens) by input), ``method`` and ``percentile`` as in
    ``spec.Quant``. Activations are signed where those of the model are. Raises ``ExportError`` where the model has no
    such tensor, or one that has no range.
    """
    own = onnx.ModelProto()
    own.CopyFrom(model)
    graph = ir.from_proto(own)
    symmetric = signed(model)
    for name in where:
        places = list(WHERE[name](graph.graph))
        if not places:
            raise ExportError(f"there is nothing in the graph to quantize as {name}")
        tensors = list(dict.fromkeys(str(value.name) for value, _ in places))
        ranges = _observe(ir.to_proto(graph), tensors, feeds, method, percentile, symmetric)
        for value, users in places:
            _quantize(graph.graph, value, users, *ranges[str(value.name)], symmetric)
    return ir.to_proto(graph)


def _product(node: ir.Node, kind: str) -> bool:
    return node.op_type == kind and not node.domain and all(constant(value) is None for value in node.inputs)


def _observe(
    model: onnx.ModelProto, tensors: list[str], feeds: Sequence[Feed], method: str, percentile: float, symmetric: bool
) -> Mapping[str, tuple[float, float]]:
    """(low, high) of each tensor over the feeds."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    runner = session(opened)
    histograms = {name: Histogram() for name in tensors}
    names = [value.name for value in model.graph.input]
    for feed in feeds:
        found = runner.run(tensors, {name: feed[name] for name in names})
        for name, array in zip(tensors, found, strict=True):
            histograms[name].observe(torch.from_numpy(array))
    ranges = {name: choose(seen, method, percentile, symmetric) for name, seen in histograms.items()}
    for name, (low, high) in ranges.items():
        if not math.isfinite(high - low) or not 0 < high - low < 1e30:
            raise ExportError(f"{name} has the range [{low}, {high}]: it cannot be quantized")
    return ranges


def _quantize(
    graph: ir.Graph, value: ir.Value, users: list[ir.Node], low: float, high: float, symmetric: bool
) -> None:
    step = high / 127 if symmetric else (high - low) / 255
    point = np.array(0, np.int8) if symmetric else np.array(round(-low / step), np.uint8)
    scale = add_constant(graph, f"{value.name}_scale", np.array(step, np.float32))
    zero = add_constant(graph, f"{value.name}_zero_point", point)
    anchor = next(node for node in graph if node in users)
    whole = insert_before(anchor, "QuantizeLinear", [value, scale, zero], f"{value.name}/QuantizeLinear")
    back = insert_before(anchor, "DequantizeLinear", [whole, scale, zero], f"{value.name}/DequantizeLinear")
    for user in users:
        for index, used in enumerate(user.inputs):
            if used is value:
                user.replace_input_with(index, back)
