"""Fake quantization in few passes over memory, for training on a CPU; all else takes Brevitas' own way.

Brevitas makes an operation of every step (divide, shift, round, clip, shift back, multiply) and of its gradient, each
over the whole tensor and the small ones anew at every call: on a CPU that costs nearly as much as the student itself.
The values are the same; a weight's scale, its largest magnitude, gets no gradient here. Scales that are learned have
their gradients from here on any device (torch's own kernel for them takes ten times as long on a CPU).
"""

from __future__ import annotations

import weakref
from typing import Any

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

    ``scale`` is ``|magnitude| / top``, one value or one for each row of ``x``; the ends are the least and the largest
    integer minus a zero point, which is ``|shift| / scale`` rounded (0 if ``shift`` is None). LSQ (Esser et al. 2020):
    a value inside moves the scale by what rounding did to it, a clipped one by the end that it stands at; LSQ+ (Bhalgat
    et al. 2020): clipped ones move the shift. Both gradients are multiplied by ``factor``.
    """

    @staticmethod
    def forward(  # noqa: D102 (autograd's protocol)
        ctx: Any, x: Tensor, magnitude: Tensor, shift: Tensor | None, scale: Tensor, ends: Ends, top: float,
        factor: float,
    ) -> Tensor:  # fmt: skip
        units = torch.div(x, scale)
        if scale.numel() > 1:
            integers = units.round().clamp_(*ends)
            ctx.save_for_backward(units, integers)
            y = integers * scale
        else:
            y = units.round_().clamp_(*ends).mul_(scale)
            ctx.save_for_backward(x, y)
        ctx.magnitude, ctx.shift, ctx.scale = magnitude.detach(), None if shift is None else shift.detach(), scale
        ctx.ends, ctx.top, ctx.factor = ends, top, factor
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (g,), (x, y), (low, high), scale, shift = grads, ctx.saved_tensors, ctx.ends, ctx.scale, None
        unit = 1.0 if scale.numel() > 1 else float(scale)
        inside = torch.ops.aten.hardtanh_backward(g, x, (low - 0.5) * unit, (high + 0.5) * unit)
        if scale.numel() > 1:
            moved = (g * y).addcmul_(inside, x, value=-1).flatten(1).sum(1).reshape(scale.shape)
        else:
            moved = (torch.dot(g.flatten(), y.flatten()) - torch.dot(inside.flatten(), x.flatten())) / unit
        if ctx.shift is not None:  # both ends go down by as much as the shift goes up
            clipped = g.sum() - inside.sum()
            moved = moved + clipped * ctx.shift.abs() / unit
            shift = clipped * torch.where(ctx.shift < 0, ctx.factor, -ctx.factor)
        sign = torch.where(ctx.magnitude < 0, -ctx.factor, ctx.factor)
        return inside, moved * sign / ctx.top, shift, None, None, None, None


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
        with torch.no_grad():
            scale = magnitude.abs().clamp_min_(1e-10).div_(threshold)
            zero_point = torch.zeros_like(bits) if shift is None else shift.abs().div(scale).round_().clamp_(low, high)
            ends = low - float(zero_point), high - float(zero_point)
        shared = x.numel() / scale.numel() / (len(x) if self.batched else 1)
        y = LearnedRound.apply(  # type: ignore[no-untyped-call]
            x, magnitude, shift, scale, ends, float(threshold), (shared * high) ** -0.5
        )
        return y.clone() if self.exposed else y, scale, zero_point, bits


class LearnedActQuant(LearnedQuant):
    """The same for activations, whose first dimension is the batch."""

    batched = True
