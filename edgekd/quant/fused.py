"""Fake quantization in few passes over memory, for training on a CPU; all else takes Brevitas' own way.

Brevitas makes an operation of every step (divide, shift, round, clip, shift back, multiply) and of its gradient, each
over the whole tensor and the small ones anew at every call: on a CPU that costs nearly as much as the student itself.
The values are the same; a weight's scale, its largest magnitude, gets no gradient here. Scales that are learned have
their gradients from here on any device (torch's own kernel for them takes ten times as long on a CPU).
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from brevitas.core.quant import RescalingIntQuant
from torch import Tensor

Ends = tuple[float, float]
Quantized = tuple[Tensor, Tensor, Tensor, Tensor]
"""What Brevitas expects of a quantizer: fake-quantized values, scale, zero point, bit width."""


class Round(torch.autograd.Function):
    """``round(x / scale) * scale``, half to even; the gradient passes straight through (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:  # noqa: D102 (autograd's protocol)
        return torch.div(x, scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        return grads[0], None


class RoundAndClip(torch.autograd.Function):
    """``clip(round(x / scale), low, high) * scale``; no gradient passes where ``x`` is clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: float, high: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x)
        ctx.bounds = (low - 0.5) * scale, (high + 0.5) * scale
        return torch.div(x, scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: D102
        return torch.ops.aten.hardtanh_backward(grads[0], *ctx.saved_tensors, *ctx.bounds), None, None, None


class LearnedRound(torch.autograd.Function):
    """``clip(round(x / scale), *ends) * scale``, with gradients of the parameters that scale and ends are made of.

    ``scale`` is ``|magnitude| / top``; the ends are the least and the largest integer minus a zero point, which is
    ``|shift| / scale`` rounded (0 if ``shift`` is None). LSQ (Esser et al. 2020): a value inside moves the scale by
    what rounding did to it, a clipped one by the end that it stands at; LSQ+ (Bhalgat et al. 2020): clipped ones move
    the shift. Both gradients are multiplied by ``factor``. Single numbers are worked with outside of torch, in float32.
    """

    @staticmethod
    def forward(  # noqa: D102 (autograd's protocol)
        ctx: Any, x: Tensor, magnitude: Tensor, shift: Tensor | None, scale: float, ends: Ends, top: float,
        factor: float,
    ) -> Tensor:  # fmt: skip
        y = torch.div(x, scale).round_().clamp_(*ends).mul_(scale)
        ctx.save_for_backward(x, y)
        ctx.magnitude, ctx.shift = magnitude.detach(), None if shift is None else shift.detach()
        ctx.scale, ctx.ends, ctx.top, ctx.factor = scale, ends, top, factor
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (g,), (x, y), (low, high), shift = grads, ctx.saved_tensors, ctx.ends, None
        scale, factor = np.float32(ctx.scale), np.float32(ctx.factor)
        inside = torch.ops.aten.hardtanh_backward(g, x, (low - 0.5) * ctx.scale, (high + 0.5) * ctx.scale)
        moved = (
            _number(torch.dot(g.flatten(), y.flatten())) - _number(torch.dot(inside.flatten(), x.flatten()))
        ) / scale
        if ctx.shift is not None:  # both ends go down by as much as the shift goes up
            clipped, value = _number(g.sum()) - _number(inside.sum()), _number(ctx.shift)
            moved += clipped * abs(value) / scale
            shift = torch.full_like(ctx.shift, float(clipped * (factor if value < 0 else -factor)))
        moved *= -factor if _number(ctx.magnitude) < 0 else factor
        magnitude = torch.full_like(ctx.magnitude, float(moved / np.float32(ctx.top)))
        return inside, magnitude, shift, None, None, None, None


class LearnedRowsRound(torch.autograd.Function):
    """The same with a scale for each row of ``x``, and no shift."""

    @staticmethod
    def forward(  # noqa: D102 (autograd's protocol)
        ctx: Any, x: Tensor, magnitude: Tensor, scale: Tensor, ends: Ends, top: float, factor: float
    ) -> Tensor:
        units = torch.div(x, scale)
        integers = units.round().clamp_(*ends)
        ctx.save_for_backward(units, integers)
        ctx.magnitude, ctx.ends, ctx.top, ctx.factor = magnitude.detach(), ends, top, factor
        return integers * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (g,), (units, integers), (low, high) = grads, ctx.saved_tensors, ctx.ends
        inside = torch.ops.aten.hardtanh_backward(g, units, low - 0.5, high + 0.5)
        moved = (g * integers).addcmul_(inside, units, value=-1).flatten(1).sum(1).reshape(ctx.magnitude.shape)
        moved *= torch.copysign(torch.full_like(moved, ctx.factor), ctx.magnitude)
        return inside, moved.div_(ctx.top), None, None, None, None


def _number(x: Tensor) -> np.float32:
    return np.float32(x.item())


class _Fast(RescalingIntQuant):  # type: ignore[misc]
    """Brevitas' integer quantizer, with a way of its own (``fast``) in training on ``devices``."""

    devices: tuple[str, ...] = ("cpu",)
    shared = False
    """Whether several layers in a row give it the same tensor, as query, key and value do: it is quantized once."""
    _last: tuple[weakref.ref[Tensor], tuple[int, bool], Quantized] | None = None

    def quick(self, x: Tensor) -> bool:
        """Whether ``x`` is to be fake-quantized in the fast way now."""
        return self.training and x.device.type in self.devices

    def forward(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized."""
        if not self.quick(x):
            quantized: Quantized = super().forward(x)
            return quantized
        if not self.shared or x.grad_fn is None:  # a leaf may come again in the next step, when ranges have changed
            return self.fast(x)
        state = x._version, torch.is_grad_enabled()
        if self._last is None or self._last[0]() is not x or self._last[1] != state:
            self._last = weakref.ref(x), state, self.fast(x)
        return self._last[2]

    def __getstate__(self) -> dict[str, Any]:
        """All but the last tensor: it belongs to a graph."""
        return {**self.__dict__, "_last": None}

    def fast(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized, in few passes."""
        raise NotImplementedError

    _constants: tuple[Tensor, Tensor, tuple[int, int]] | None = None

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Bit width, the integer that a scale's magnitude becomes, and the least and the largest integer."""
        if self._constants is None or self._constants[0].device != device:
            with torch.no_grad():
                bits = self.msb_clamp_bit_width_impl()
                ends = int(self.int_quant.min_int(bits)), int(self.int_quant.max_int(bits))
                self._constants = bits, self.int_scaling_impl(bits), ends
        return self._constants

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, zero point and bit width, as Brevitas works them out."""
        bits, threshold, _ = self.constants(x.device)
        scale = self.scaling_impl(x, threshold)
        return scale, self.zero_point_impl(x, scale, bits), bits


class WeightQuant(_Fast):
    """A weight's quantizer, symmetric, whose scale is the largest magnitude over the largest integer: nothing clips."""

    def fast(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized, in few passes."""
        with torch.no_grad():
            scale, zero_point, bits = self.grid(x)
        return Round.apply(self.int_quant.input_view_impl(x), scale), scale, zero_point, bits  # type: ignore[no-untyped-call]

    def part(self, x: Tensor, whole: Tensor) -> Tensor:
        """``x``, some values of ``whole``, fake-quantized by the one scale of all its values."""
        with torch.no_grad():
            scale, _, _ = self.grid(whole)
        return Round.apply(x, scale)  # type: ignore[no-any-return, no-untyped-call]


class ActQuant(_Fast):
    """An activation's quantizer with a static range, which is worked out anew only when its parameters have changed."""

    _known: tuple[Any, ...] | None = None

    def fast(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized, in few passes."""
        versions = [part.value._version for part in (self.scaling_impl, self.zero_point_impl) if hasattr(part, "value")]
        if self._known is None or self._known[0] != versions:
            with torch.no_grad():
                scale, zero_point, bits = self.grid(x)
                floats = (float(scale), *(end - float(zero_point) for end in self.constants(x.device)[2]))
            self._known = (versions, floats, (scale, zero_point, bits))
        _, floats, tensors = self._known
        return (RoundAndClip.apply(x, *floats), *tensors)  # type: ignore[no-untyped-call]


class LearnedQuant(_Fast):
    """A quantizer whose scale, and zero point if it has one, are trained like weights.

    Their gradients are divided by the square root of the largest integer times how many values share a scale, of one
    example where there is a batch, so that they stay small beside the weights' (LSQ; LSQ+, Bhalgat et al. 2020).
    """

    devices = ("cpu", "cuda")
    batched = False
    exposed = False  # whether the model's own code gets what comes out, and may change it in place

    def fast(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized, in few passes."""
        magnitude, shift = self.scaling_impl.value, getattr(self.zero_point_impl, "value", None)
        bits, threshold, (low, high) = self.constants(x.device)
        top, values = float(threshold), x.numel() // magnitude.numel() // (len(x) if self.batched else 1)
        factor = (values * high) ** -0.5
        if magnitude.numel() > 1:
            scale = magnitude.detach().abs().clamp_min_(1e-10).div_(threshold)
            y = LearnedRowsRound.apply(x, magnitude, scale, (low, high), top, factor)  # type: ignore[no-untyped-call]
            return y, scale, torch.zeros_like(bits), bits
        step = float(max(abs(_number(magnitude)), np.float32(1e-10)) / np.float32(top))
        point = 0.0 if shift is None else min(max(float(np.rint(abs(_number(shift)) / np.float32(step))), low), high)
        y = LearnedRound.apply(  # type: ignore[no-untyped-call]
            x, magnitude, shift, step, (low - point, high - point), top, factor
        )
        return y.clone() if self.exposed else y, torch.full_like(bits, step), torch.full_like(bits, point), bits


class LearnedActQuant(LearnedQuant):
    """The same for activations, whose first dimension is the batch."""

    batched = True
