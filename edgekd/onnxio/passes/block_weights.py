"""Weights in four bits, multiplied and looked up by onnxruntime's own operators.

Requires: the lean graph with its final names, whose weights hold the fake-quantized numbers; and the integers that they
were made of, by module (``edgekd.quant.blocks``).
Does: a ``Gemm`` or ``MatMul`` with such a weight becomes ``MatMulNBits``, a ``Gather`` from such a table
``GatherBlockQuantized``, both of the domain ``com.microsoft``. Activations stay in float: no accuracy level is asked
for that would let a runtime quantize them. Scales are stored in float16 and cast, which onnxruntime does once,
on loading. Tables are bytes and not int4, which the file format and runtimes learned later.
Ensures: every module is in the graph in four bits, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from edgekd.errors import ExportError
from edgekd.onnxio import nibbles
from edgekd.onnxio.graph import add_constant, attribute, axis, constant, insert_before, replace
from edgekd.onnxio.names import module_path
from edgekd.quant.blocks import Blocks

DOMAIN = "com.microsoft"


def apply(model: onnx.ModelProto, weights: Mapping[str, Blocks]) -> onnx.ModelProto:
    """The model with its weights in four bits; the one given is not changed. Raises ``ExportError`` as ``run`` does."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    graph = ir.from_proto(own)
    run(graph, weights)
    ensures(graph, weights)
    return ir.to_proto(graph)


def run(model: ir.Model, weights: Mapping[str, Blocks]) -> int:
    """Return how many nodes were put in. Raises ``ExportError`` where the graph holds other numbers than the module."""
    count = 0
    for node, name in list(_users(model, weights)):
        made = _gathered if node.op_type == "Gather" else _multiplied
        replace(node, made(node, name, weights[name]))
        count += 1
    if count:
        model.graph.opset_imports[DOMAIN] = 1
    return count


def ensures(model: ir.Model, weights: Mapping[str, Blocks]) -> None:
    """Raise ``ExportError`` for a module that is in the graph, but not in four bits."""
    for node, name in _users(model, weights):
        raise ExportError(f"{node.name}: uses the weight of {name} in float, which was trained in 4 bits")
    paths = {_module(node): node.op_type for node in model.graph if node.domain != DOMAIN}
    made = {_module(node) for node in model.graph if node.domain == DOMAIN}
    for name in weights:
        if name in paths and name not in made:
            raise ExportError(f"{name}: stands in the graph as {paths[name]} without its 4-bit weight")


def _users(model: ir.Model, weights: Mapping[str, Blocks]) -> Iterator[tuple[ir.Node, str]]:
    """The nodes that multiply with the weight of a module, or look up in it, and the module's name."""
    for node in model.graph:
        factor = {"Gemm": 1, "MatMul": 1, "Gather": 0}.get(node.op_type)
        if factor is None or node.domain or _module(node) not in weights:
            continue
        if constant(node.inputs[factor]) is not None:
            yield node, _module(node)


def _module(node: ir.Node) -> str:
    return module_path(node.name or "").rpartition(".")[0]


def _multiplied(node: ir.Node, name: str, blocks: Blocks) -> ir.Value:
    weight = constant(node.inputs[1])
    assert weight is not None and node.graph is not None
    _check(name, weight if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight.T, blocks)
    rows, width = blocks.integers.shape
    count = blocks.scales.shape[1]
    packed = nibbles.pack(blocks.integers, count * blocks.size).reshape(rows, count, blocks.size // 2)
    stem = (node.name or "").rpartition("/")[0]
    inputs = [node.inputs[0], add_constant(node.graph, f"{stem}/packed", packed), _scales(node, stem, blocks)]
    if len(node.inputs) > 2:
        inputs += [None, None, node.inputs[2]]
    options = {"K": width, "N": rows, "bits": 4, "block_size": blocks.size}
    return insert_before(node, "MatMulNBits", inputs, f"{stem}/MatMulNBits", options, DOMAIN)


def _gathered(node: ir.Node, name: str, blocks: Blocks) -> ir.Value:
    table = constant(node.inputs[0])
    assert table is not None and node.graph is not None
    _check(name, table, blocks)
    if axis(node, 0, 2):
        raise ExportError(f"{node.name}: takes columns of {name}, which is stored by rows")
    stem = (node.name or "").rpartition("/")[0]
    packed = add_constant(node.graph, f"{stem}/packed", nibbles.pack(blocks.integers, table.shape[1]))
    inputs = [packed, node.inputs[1], _scales(node, stem, blocks)]
    options = {"block_size": blocks.size, "quantize_axis": 1}
    return insert_before(node, "GatherBlockQuantized", inputs, f"{stem}/GatherBlockQuantized", options, DOMAIN)


def _check(name: str, weight: np.ndarray, blocks: Blocks) -> None:
    if not np.array_equal(weight, blocks.dequantized()):
        raise ExportError(f"{name}: the graph does not hold the numbers that its 4-bit integers stand for")


def _scales(node: ir.Node, stem: str, blocks: Blocks) -> ir.Value:
    assert node.graph is not None
    scales = add_constant(node.graph, f"{stem}/scales", blocks.scales)
    return insert_before(node, "Cast", [scales], f"{stem}/weight_quant/Cast", {"to": int(ir.DataType.FLOAT)})
