"""An exported graph as a torch module in the operators that ExecuTorch's XNNPACK delegate takes, for one example.

What the delegate does not take runs in slower code outside it, and cuts it in two. It takes reshapes with one open
dimension at most, so a tensor of four dimensions goes without its first, the batch, here; it takes no means of rows and
picks no token along an open dimension, so products do both; and it wants the multiplications of one tensor one after
another. A matrix in int8 is held as it is in the graph, and dequantized for the delegate to see; what it is multiplied
with is quantized by each row's range, which is the graph's after ``edgekd.onnxio.passes.range_ends``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.onnxio import bridge
from edgekd.onnxio.graph import dims, infer
from edgekd.onnxio.operators import OPERATORS, Ints, Q

BATCH = "batch"
"""Marks a node that reads a tensor of four dimensions, which is here without its first."""
Nodes = list[tuple[onnx.NodeProto, dict[str, Any]]]


class Matrix(NamedTuple):
    """A constant matrix by its rows: float, or int8 with a scale for each row (or one, where rows are looked up)."""

    rows: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None


class Delegable(bridge.Graph):
    """A folded graph, whose weights in int8 are ``known`` (see ``bridge.stored``). Raises as ``bridge.Graph`` does."""

    def __init__(self, model: onnx.ModelProto, known: Mapping[bytes, bridge.Stored]) -> None:
        super().__init__(model)
        self.matrices: dict[str, tuple[str, ...]] = {}
        self.quantized: dict[Tensor, Tensor] = {}
        images = any(node.op_type == "Conv" for node, _ in self.nodes)
        usual = OPERATORS if images else {name: _without_batch(function) for name, function in OPERATORS.items()}
        self.operators = {**usual, **OWN, "Gemm": self._gemm, "MatMul": self._matmul}
        four = _four(model)
        for node, of in self.nodes:
            if not images and not four.isdisjoint(node.input):
                of[BATCH] = True
                if of.get("axis", 0) > 0:
                    of["axis"] -= 1
        self.nodes = _side_by_side(self.nodes, self.names.keys() | self.constants.keys())
        uses: dict[str, set[str]] = {}
        for node, of in self.nodes:
            for place, name in enumerate(node.input):
                uses.setdefault(name, set()).add(_use(node.op_type, of, place))
            if node.op_type == "LayerNormalization":
                self._norm(node, of)
        for name, use in uses.items():
            if name in self.names and getattr(self, self.names[name]).ndim == 2 and use in ({"rows"}, {"columns"}):
                self._by_rows(name, known, use == {"columns"})

    def _norm(self, node: onnx.NodeProto, of: Mapping[str, Any]) -> None:
        """Give a normalization what it multiplies with for a mean, and its epsilon."""
        size, epsilon = len(getattr(self, self.names[node.input[1]])), of.get("epsilon", 1e-5)
        shares, least = f"shares of {size}", f"epsilon {epsilon}"
        self.hold(shares, torch.full((1, size), 1 / size))
        self.hold(least, torch.full((1,), epsilon))
        node.input.extend([*[""] * (3 - len(node.input)), shares, least])

    def _by_rows(self, name: str, known: Mapping[bytes, bridge.Stored], turned: bool) -> None:
        """Hold a matrix by the rows that are computed or looked up, in int8 if it is ``known`` so."""
        floats = getattr(self, self.names[name])
        rows = (floats.t() if turned else floats).contiguous()
        stored = known.get(rows.numpy().tobytes())
        if stored is None:
            self.matrices[name] = (name,)
        else:
            rows = torch.from_numpy(stored.integers.copy())
            scale = stored.scale if stored.table else np.broadcast_to(stored.scale, len(rows))
            self.matrices[name] = (name, f"{name}, scale", f"{name}, zero")
            self.hold(f"{name}, scale", torch.from_numpy(scale.copy()))
            self.hold(f"{name}, zero", torch.zeros(len(rows), dtype=torch.int64))
        self.hold(name, rows)

    def answer(self, known: dict[str, Any]) -> Tensor:
        """The logits of one example."""
        matrices = {name: Matrix(*(known[part] for part in parts)) for name, parts in self.matrices.items()}
        logits = super().answer(known | matrices)
        self.quantized.clear()
        return logits

    def _gemm(self, of: Mapping[str, Any], x: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
        if isinstance(weight, Matrix) and (of.get("alpha", 1.0), of.get("beta", 1.0)) == (1.0, 1.0):
            return self._product(x, weight, bias)
        rows = {} if not isinstance(weight, Matrix) else {"transB": 1}
        return OPERATORS["Gemm"]({**of, **rows}, x, _floats(weight), bias)

    def _matmul(self, of: Mapping[str, Any], a: Tensor, b: Any) -> Any:
        if isinstance(b, Matrix):
            return self._product(a, b)
        return torch.bmm(a, b) if a.ndim == b.ndim == 3 else torch.matmul(a, b)

    def _product(self, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        if weight.scale is None:
            return F.linear(x, weight.rows, bias)
        if x not in self.quantized:
            scale, zero = Q.choose_qparams.tensor(x, *STEPS[:2], torch.finfo(torch.float32).eps, STEPS[2])
            steps = Q.quantize_per_tensor.tensor(x, scale, zero, *STEPS)
            self.quantized[x] = Q.dequantize_per_tensor.tensor(steps, scale, zero, *STEPS)
        return F.linear(self.quantized[x], _floats(weight), bias)


STEPS = (-128, 127, torch.int8)


def _floats(weight: Any) -> Any:
    if not isinstance(weight, Matrix) or weight.scale is None:
        return weight.rows if isinstance(weight, Matrix) else weight
    return Q.dequantize_per_channel(weight.rows, weight.scale, weight.zero, 0, -127, 127, torch.int8)


def _four(model: onnx.ModelProto) -> frozenset[str | None]:
    """The names of all tensors of four dimensions."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    graph = ir.from_proto(own)
    infer(graph)
    return frozenset(value.name for node in graph.graph for value in node.outputs if len(dims(value) or ()) == 4)


def _use(kind: str, of: Mapping[str, Any], place: int) -> str:
    """What of a matrix an operator computes or looks up where it reads it, if it is one that we know."""
    if kind in ("Gemm", "MatMul") and place == 1:
        return "rows" if of.get("transB") else "columns"
    return "rows" if (kind, place, of.get("axis", 0)) == ("Gather", 0, 0) else "another"


def _side_by_side(nodes: Nodes, constants: Set[str]) -> Nodes:
    """The nodes, those that multiply one tensor with constants one after another."""
    first: dict[str, Nodes] = {}
    ordered: list[Nodes] = []
    for node, of in nodes:
        apart = node.op_type not in ("Gemm", "MatMul") or not set(node.input[1:]) <= constants
        if not apart and node.input[0] in first:
            first[node.input[0]].append((node, of))
            continue
        ordered.append([(node, of)])
        if not apart:
            first[node.input[0]] = ordered[-1]
    return [pair for group in ordered for pair in group]


def _without_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """What ``function`` gives, without the first of four dimensions if that is 1."""

    def apply(of: Mapping[str, Any], *given: Any) -> Any:
        found = function(of, *given)
        four = isinstance(found, Tensor) and found.ndim == 4 and found.shape[0] == 1
        return found.squeeze(0) if four else found

    return apply


def _reshape(of: Mapping[str, Any], x: Any, shape: Any) -> Any:
    if not isinstance(x, Tensor) or isinstance(shape, Tensor):
        return OPERATORS["Reshape"](of, x, shape)
    kept = not of.get("allowzero", 0)
    sizes = [x.shape[i] if kept and isinstance(d, int) and d == 0 else d for i, d in enumerate(shape)]
    for place in (i for i, d in enumerate(sizes) if isinstance(d, int) and d == -1):
        sizes[place] = x.numel() // math.prod(sizes[:place] + sizes[place + 1 :])
    return _view(x, sizes[1:] if len(sizes) == 4 and sizes[0] == 1 else sizes)


def _view(x: Tensor, sizes: Ints) -> Tensor:
    """``x`` in other dimensions; one that is open is left to the delegate to find."""
    left = [d if isinstance(d, int) else -1 for d in sizes]
    return torch.ops.aten.view.default(x.contiguous(), left) if left.count(-1) < 2 else x.reshape(sizes)


def _shape(of: Mapping[str, Any], x: Any) -> Any:
    return OPERATORS["Shape"](of, torch.unsqueeze(x, 0) if BATCH in of else x)


def _transpose(of: Mapping[str, Any], x: Tensor) -> Tensor:
    perm = of["perm"]
    return x.permute(perm if len(perm) == x.ndim else [place - 1 for place in perm[1:]])


def _clip(of: Mapping[str, Any], x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return x.clamp(low, high) if low is None or high is None else F.hardtanh(x, low, high)


def _normalized(of: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Any, shares: Tensor, epsilon: Tensor) -> Any:
    off = x - F.linear(x, shares)
    found = off * torch.rsqrt(F.linear(off * off, shares, epsilon)) * scale
    return found if bias is None else found + bias


def _gather(of: Mapping[str, Any], x: Any, where: Any) -> Any:
    if isinstance(x, Matrix):
        found = F.embedding(torch.as_tensor(where), x.rows)
        return found if x.scale is None else found.float() * x.scale
    if isinstance(x, Tensor) and isinstance(where, int) and of.get("axis") == 1 and x.ndim == 3 and where >= 0:
        return _view(_picked(x, where), [x.shape[0], x.shape[2]])
    return OPERATORS["Gather"](of, x, where)


def _slice(of: Mapping[str, Any], x: Any, begin: Any, end: Any, axes: Any = None, steps: Any = None) -> Any:
    if BATCH in of and axes is not None:
        axes = [axis - (axis > 0) for axis in axes]
    one = BATCH not in of and isinstance(begin, list) and axes == [1] and begin[0] >= 0 and end == [begin[0] + 1]
    if one and isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point():
        return _picked(x, begin[0])
    return OPERATORS["Slice"](of, x, begin, end, axes, steps)


def _picked(x: Tensor, place: int) -> Tensor:
    """The token at ``place`` in (1, tokens, channels), as a product with a row that is one there and zero elsewhere."""
    tokens: Any = x.shape[1]  # a number, or torch's symbol for one
    if isinstance(tokens, int):
        return x.narrow(1, place, 1)
    return torch.bmm((torch.arange(tokens) == place).float().reshape(1, 1, -1), x)


OWN: dict[str, Callable[..., Any]] = {
    "Clip": _clip,
    "Gather": _gather,
    "LayerNormalization": _normalized,
    "Reshape": _reshape,
    "Slice": _slice,
    "Shape": _shape,
    "Transpose": _transpose,
}
