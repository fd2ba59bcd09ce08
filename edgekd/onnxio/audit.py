"""What really runs in int8, or on 4-bit weights: the graph that onnxruntime makes of a file, multiplication by
multiplication.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from edgekd.errors import ExportError
from edgekd.globs import matches, named_in
from edgekd.onnxio import files
from edgekd.onnxio.graph import attribute, dims, infer
from edgekd.onnxio.names import module_path

BATCH, SEQUENCE = 1, 64
"""The shape at which multiply-accumulate operations are counted."""

INTEGER = {
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "NhwcQLinearConv", "QAttention",
    "QGemm", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
BLOCKS = {"MatMulNBits"}
"""Float activations and sums; the weights are n-bit integers with a scale for each block."""
FLOAT = {
    "Attention", "Conv", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation",
    "Gemm", "GemmFloat8", "GroupQueryAttention", "MatMul", "MultiHeadAttention", "NhwcFusedConv",
    "TransposeMatMul",
}  # fmt: skip
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
"""Recurrent layers, in float too, and how many products with a token and with a state each has."""

KINDS = ("int8", "4-bit weights", "float")
MULTIPLICATIONS = INTEGER | BLOCKS | FLOAT | GATES.keys()

WEIGHT = {"QLinearMatMul": 3, "QLinearConv": 3}  # which input is the right factor, where not the second


def audit(path: Path, keep_float: tuple[str, ...]) -> dict[str, Any]:
    """Classify every matrix multiplication and convolution of the optimized graph as int8, 4-bit weights or float.

    ``keep_float`` holds globs over dotted node and module paths, for what is meant to stay in float. Returns

    * ``multiplications``: [{node, operator, kind, int8, macs}], one per multiplication of the file, in its order; kind
      is ``int8``, ``4-bit weights`` or ``float``;
    * ``int8``, ``4-bit weights``, ``float``: how many; ``int8_mac_share`` and ``quantized_mac_share``: the share of
      multiply-accumulates done in int8, or in anything but float, at batch 1 and 64 tokens (``None`` where not every
      one can be counted); ``operators``: how often each operator stands in the optimized graph; ``nodes``; ``runtime``.

    Raises ``ExportError`` for a float multiplication that no glob names, a glob that matches nothing, and a graph in
    which nothing is quantized.
    """
    model = files.read(path)
    optimized = _optimized(model, path)
    rows: list[dict[str, Any]] = [
        {"node": module_path(name), "operator": op, "kind": kind(op), "int8": op in INTEGER, "macs": macs}
        for name, op, macs in _classify(model, optimized)
    ]
    counts = Counter(row["kind"] for row in rows)
    if counts["float"] == len(rows):
        raise ExportError("the recipe quantizes nothing: every multiplication of the optimized graph is done in float")
    _check_patterns(model, keep_float)
    leftover = [row for row in rows if row["kind"] == "float" and not named_in(str(row["node"]), keep_float)]
    if leftover:
        names = ", ".join(f"{row['node']} ({row['operator']})" for row in leftover)
        raise ExportError(f"runs in float though nothing keeps it there: {names}; quantize it or name it in keep_float")
    total, counted = sum(row["macs"] for row in rows), all(row["macs"] for row in rows)
    done = {name: sum(row["macs"] for row in rows if row["kind"] == name) for name in KINDS}
    return {
        "multiplications": rows,
        **{name: counts[name] for name in KINDS},
        "int8_mac_share": done["int8"] / total if counted else None,
        "quantized_mac_share": 1 - done["float"] / total if counted else None,
        "operators": dict(sorted(Counter(node.op_type for node in optimized.graph.node).items())),
        "nodes": len(optimized.graph.node),
        "runtime": f"onnxruntime {onnxruntime.__version__}",
    }


def kind(operator: str) -> str:
    """What a multiplication of that type is counted as: one of ``KINDS``."""
    return "int8" if operator in INTEGER else "4-bit weights" if operator in BLOCKS else "float"


def session(model: onnx.ModelProto, *, optimize: bool = True, save: Path | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime session on one thread, with all graph optimizations or none; ``save`` gets the optimized graph.

    A graph with signed activations is made for ARM; it is optimized here as it would be there.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if signed(model):
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    if save is not None:
        options.optimized_model_filepath = str(save)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise ExportError(f"onnxruntime {onnxruntime.__version__} cannot load the graph: {error}") from error


def signed(model: onnx.ModelProto) -> bool:
    """Whether activations are quantized to int8 rather than uint8."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    return any(types.get(name) == onnx.TensorProto.INT8 for name in points)


def _optimized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        session(model, save=file)
        return files.read(file)


def _classify(model: onnx.ModelProto, optimized: onnx.ModelProto) -> list[tuple[str, str, int]]:
    """(name in the file, operator in the optimized graph, multiply-accumulates) of each multiplication of the file.

    Fusions keep the first node's name, with something behind it, or at least the name of the tensor that they compute.
    What works on another order of dimensions has ``_token_`` and a number behind its name.
    """
    made = [node for node in optimized.graph.node if node.op_type in MULTIPLICATIONS]
    by_output = {name: node for node in made for name in node.output}
    macs = _macs(model)
    rows = []
    for node in model.graph.node:
        if node.op_type not in MULTIPLICATIONS:
            continue
        named = [other for other in made if re.match(rf"{re.escape(node.name)}($|/|_token_\d+$)", other.name)]
        match = named[0] if named else by_output.get(node.output[0])
        # A multiplication that vanished in a fusion without a trace counts as float: better asked than overlooked.
        rows.append((node.name, match.op_type if match is not None else node.op_type, macs.get(node.name, 0)))
    return rows


def _macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates by node name at batch 1 (and 64 tokens); 0 where a shape cannot be told."""
    graph = ir.from_proto(_standard(model))
    infer(graph)
    size = {"batch": BATCH, "sequence": SEQUENCE}
    counts = {}
    for node in graph.graph:
        if node.op_type not in MULTIPLICATIONS:
            continue
        out, weight = (_numbers(v, size) for v in (node.outputs[0], node.inputs[WEIGHT.get(node.op_type, 1)]))
        inner = math.prod(weight[1:]) if "Conv" in node.op_type else weight[-2:][0] if weight else 0
        if node.op_type == "Gemm" and attribute(node, "transB", 0):
            inner = weight[-1]
        elif node.op_type in GATES:
            inner = GATES[node.op_type] * (weight[-1] + out[-1])
        counts[node.name or ""] = math.prod(out) * inner
    return counts


def _standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with standard operators, whose shapes are known, for those on 4-bit weights, and inputs as weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in copy.graph.node:
        if node.op_type in BLOCKS:
            size = {a.name: a.i for a in node.attribute}
            node.op_type, shape, inputs = "MatMul", (size["K"], size["N"]), [node.input[0], f"{node.name}:weight"]
        elif node.op_type == "GatherBlockQuantized":
            rows, count = stored[node.input[0]]
            node.op_type, shape, inputs = "Gather", (rows, 2 * count), [f"{node.name}:weight", node.input[1]]
        else:
            continue
        weight = onnx.helper.make_tensor_value_info(f"{node.name}:weight", onnx.TensorProto.FLOAT, shape)
        copy.graph.input.append(weight)
        node.domain, node.input[:] = "", inputs
        del node.attribute[:]
    return copy


def _numbers(value: ir.Value | None, size: dict[str, int]) -> list[int]:
    """A shape in numbers; [0] where a dimension is not known."""
    shape = dims(value)
    if shape is None and value is not None and value.const_value is not None:
        shape = tuple(value.const_value.shape.numpy())
    if shape is None or None in shape:
        return [0]
    return [_number(d, size) if isinstance(d, str) else int(d or 0) for d in shape]


def _number(dimension: str, size: dict[str, int]) -> int:
    product, _, more = dimension.partition("+")
    return math.prod(size.get(name, 0) for name in product.split("*")) + int(more or 0)


def _check_patterns(model: onnx.ModelProto, keep_float: tuple[str, ...]) -> None:
    paths = [module_path(node.name) for node in model.graph.node]
    for pattern in keep_float:
        if not any(matches(path, pattern) for path in paths):
            raise ExportError(f"keep_float {pattern!r} matches no node or module of the graph; correct or remove it")
