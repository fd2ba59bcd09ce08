"""ONNX's operators in torch: ``OPERATORS[type](attributes, *inputs)``, by the standard's definitions (opset 17).

What describes shapes is a number or a list of them, Python's own or torch's symbols: a graph that is traced again may
leave them open. All else is a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import Tensor

Ints = list[Any]
Q = torch.ops.quantized_decomposed
INTEGERS = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
}


def _shape(of: Mapping[str, Any], x: Tensor) -> Ints:
    sizes = list(x.shape) if isinstance(x, Tensor) else [len(x)] if isinstance(x, list) else []
    return sizes[of.get("start", 0) : of.get("end")]


def _concat(of: Mapping[str, Any], *parts: Any) -> Any:
    if all(isinstance(part, list) for part in parts):
        return [number for part in parts for number in part]
    return torch.cat([_tensor(part) for part in parts], of["axis"])


def _slice(of: Mapping[str, Any], x: Any, begin: Ints, end: Ints, axes: Any = None, steps: Any = None) -> Any:
    begin, end = _sizes(begin), _sizes(end)
    if isinstance(x, list):
        return x[begin[0] : min(end[0], len(x)) : steps[0] if steps else 1]
    for i, axis in enumerate(axes if axes is not None else range(len(begin))):
        cut: list[Any] = [slice(None)] * x.ndim
        cut[axis] = slice(
            begin[i], None if isinstance(end[i], int) and end[i] > 2**31 else end[i], steps[i] if steps else 1
        )
        x = x[tuple(cut)]
    return x


def _gather(of: Mapping[str, Any], x: Any, where: Any) -> Any:
    axis = of.get("axis", 0)
    if isinstance(x, list):
        return [x[i] for i in where] if isinstance(where, list) else x[where]
    if isinstance(where, int):
        return x.select(axis, where)
    where = _tensor(where)
    if axis == 0 and x.ndim == 2:
        return F.embedding(where, x)
    return x.index_select(axis, where.reshape(-1)).reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :])


def _reshape(of: Mapping[str, Any], x: Any, shape: Ints) -> Any:
    kept = not of.get("allowzero", 0)
    return _tensor(x).reshape(
        [x.shape[i] if kept and isinstance(d, int) and d == 0 else d for i, d in enumerate(_sizes(shape))]
    )


def _gemm(of: Mapping[str, Any], a: Tensor, b: Tensor, bias: Tensor | None = None) -> Any:
    a = a.t() if of.get("transA") else a
    b = b if of.get("transB") else b.t()
    alpha, beta = of.get("alpha", 1.0), of.get("beta", 1.0)
    if bias is None or (alpha, beta) == (1.0, 1.0):
        return F.linear(a, b, bias) * alpha if alpha != 1.0 else F.linear(a, b, bias)
    return alpha * F.linear(a, b) + beta * bias


def _normalized(of: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    return F.layer_norm(x, scale.shape, scale, bias, of.get("epsilon", 1e-5))


def _unsqueeze(of: Mapping[str, Any], x: Any, axes: Ints) -> Any:
    if not isinstance(x, Tensor):
        return [x]
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(of: Mapping[str, Any], x: Any, axes: Ints | None = None) -> Any:
    if isinstance(x, list):
        return x[0]
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _cast(of: Mapping[str, Any], x: Any) -> Any:
    if isinstance(x, Tensor):
        return x if x.dtype == TYPES[of["to"]] else x.to(TYPES[of["to"]])  # what is traced has no step for nothing
    to = {torch.float32: float, torch.bool: bool}.get(TYPES[of["to"]])
    return x if to is None else _each(to, x)


def _quantize(of: Mapping[str, Any], x: Tensor, scale: Tensor, zero: Tensor) -> Any:
    return Q.quantize_per_tensor(x, float(scale), int(zero), *INTEGERS[zero.dtype], zero.dtype)


def _dequantize(of: Mapping[str, Any], x: Tensor, scale: Tensor, zero: Tensor) -> Any:
    if x.dtype == torch.int32:  # a bias
        return x.float() * scale
    if scale.ndim == 0:
        return Q.dequantize_per_tensor(x, float(scale), int(zero), *INTEGERS[x.dtype], x.dtype)
    return Q.dequantize_per_channel(x, scale, zero, of.get("axis", 1), *INTEGERS[x.dtype], x.dtype)


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(of: Mapping[str, Any], x: Tensor, axes: Ints | None = None) -> Tensor:
        return function(x, list(of["axes"]) if axes is None else axes, keepdim=bool(of.get("keepdims", 1)))

    return apply


def _conv(of: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    spread = x.ndim - 2
    pads = of.get("pads", [0] * 2 * spread)
    x = F.pad(x, _ends(pads))
    convolve = (F.conv1d, F.conv2d)[spread - 1]
    steps, holes = (of.get(name, [1] * spread) for name in ("strides", "dilations"))
    return convolve(x, weight, bias, steps, 0, holes, of.get("group", 1))


def _pad(of: Mapping[str, Any], x: Any, pads: Ints, value: Any = None, axes: Any = None) -> Any:
    return F.pad(x, _ends(pads), value=float(value or 0))


def _ends(pads: Ints) -> Ints:
    """What is added at both ends of each dimension, as torch lists it: the last dimension first."""
    half = len(pads) // 2
    return [p for i in reversed(range(half)) for p in (pads[i], pads[i + half])]


def _split(of: Mapping[str, Any], x: Tensor, parts: Ints | None = None) -> Any:
    axis = of.get("axis", 0)
    if parts is None:
        parts = [x.shape[axis] // of["num_outputs"]] * of["num_outputs"]
    return torch.split_with_sizes(x, parts, axis)


def _filled(of: Mapping[str, Any], shape: Ints) -> Any:
    value = of["value"].item() if "value" in of else 0.0
    if len(shape) == 1 and isinstance(value, int) and shape[0] < 9:
        return [value] * shape[0]
    return torch.full(shape, value)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def apply(of: Mapping[str, Any], a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return function(_tensor(a), _tensor(b))
        return _each(function, a, b)

    return apply


def _each(function: Callable[..., Any], *given: Any) -> Any:
    """A function of numbers, of each in lists of them."""
    lists = [x for x in given if isinstance(x, list)]
    if not lists:
        return function(*given)
    length = max(len(x) for x in lists)
    rows = [x * length if isinstance(x, list) and len(x) == 1 else x for x in given]
    return [function(*(x[i] if isinstance(x, list) else x for x in rows)) for i in range(length)]


def _where(of: Mapping[str, Any], test: Any, a: Any, b: Any) -> Any:
    if isinstance(test, Tensor):
        return torch.where(test, _tensor(a), _tensor(b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.where(_tensor(test), _tensor(a), _tensor(b))
    return _each(lambda chosen, p, q: p if chosen else q, test, a, b)


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")
    return a / b if isinstance(a, float) else a // b


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda of, x: function(_tensor(x))


def _sizes(shape: Any) -> Ints:
    return shape.tolist() if isinstance(shape, Tensor) else shape


def _tensor(x: Any) -> Any:
    return x if isinstance(x, Tensor) else torch.tensor(x)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(lambda a, b: a + b),
    "And": _binary(lambda a, b: a & b),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": lambda of, x, low=None, high=None: x.clamp(low, high),
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Cos": _unary(torch.cos),
    "CumSum": lambda of, x, axis: x.cumsum(axis if isinstance(axis, int) else int(axis)),
    "DequantizeLinear": _dequantize,
    "Div": _binary(_quotient),
    "Equal": _binary(lambda a, b: a == b),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": lambda of, x, shape: _tensor(x) * torch.ones(_sizes(shape), dtype=_tensor(x).dtype),
    "Flatten": lambda of, x: x.reshape(math.prod(x.shape[: of.get("axis", 1)]), -1),
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "GatherElements": lambda of, x, where: x.gather(of.get("axis", 0), where),
    "Gelu": _unary(F.gelu),
    "Gemm": _gemm,
    "Greater": _binary(lambda a, b: a > b),
    "GreaterOrEqual": _binary(lambda a, b: a >= b),
    "Identity": lambda of, x: x,
    "LayerNormalization": _normalized,
    "Less": _binary(lambda a, b: a < b),
    "LessOrEqual": _binary(lambda a, b: a <= b),
    "Log": _unary(torch.log),
    "MatMul": _binary(torch.matmul),
    "Max": _binary(lambda a, b: torch.maximum(a, b) if isinstance(a, Tensor) else max(a, b)),
    "Min": _binary(lambda a, b: torch.minimum(a, b) if isinstance(a, Tensor) else min(a, b)),
    "Mul": _binary(lambda a, b: a * b),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(lambda a, b: a | b),
    "Pad": _pad,
    "Pow": _binary(lambda a, b: a**b),
    "QuantizeLinear": _quantize,
    "Range": lambda of, begin, end, step: torch.arange(begin, end, step),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": lambda of, x: x.softmax(of.get("axis", -1)),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(lambda a, b: a - b),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda of, x, times: x.tile(times),
    "Transpose": lambda of, x: x.permute(of["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
