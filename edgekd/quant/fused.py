"""Fake quantization in few passes over memory, for training on a CPU; all else takes Brevitas' own way.

Brevitas makes an operation of every step (divide, shift, round, clip, shift back, multiply) and of its gradient, each
over the whole tensor and the small ones anew at every call: on a CPU that costs nearly as much as the student itself.
The values are the same; a weight's scale, its largest magnitude, gets no gradient here.
"""

from __future__ import annotations

from typing import Any

import torch
from brevitas.core.quant import RescalingIntQuant
from torch import Tensor

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


class _Fast(RescalingIntQuant):  # type: ignore[misc]
    """Brevitas' integer quantizer, with a way of its own (``fast``) in training on a CPU."""

    def forward(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized."""
        if self.training and x.device.type == "cpu":
            return self.fast(x)
        quantized: Quantized = super().forward(x)
        return quantized

    def fast(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized, in few passes."""
        raise NotImplementedError

    @torch.no_grad()
    def grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, zero point and bit width, as Brevitas works them out."""
        bits = self.msb_clamp_bit_width_impl()
        scale = self.scaling_impl(x, self.int_scaling_impl(bits))
        return scale, self.zero_point_impl(x, scale, bits), bits


class WeightQuant(_Fast):
    """A weight's quantizer, symmetric, whose scale is the largest magnitude over the largest integer: nothing clips."""

    def fast(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized, in few passes."""
        scale, zero_point, bits = self.grid(x)
        return Round.apply(x, scale), scale, zero_point, bits  # type: ignore[no-untyped-call]


class ActQuant(_Fast):
    """An activation's quantizer with a static range, which is worked out anew only when its parameters have changed."""

    _known: tuple[Any, ...] | None = None

    def fast(self, x: Tensor) -> Quantized:
        """``x`` fake-quantized, in few passes."""
        versions = [parameter._version for parameter in self.parameters()]
        if self._known is None or self._known[0] != versions:
            scale, zero_point, bits = self.grid(x)
            ends = (self.int_quant.min_int(bits), self.int_quant.max_int(bits))
            floats = (float(scale), *(float(end - zero_point) for end in ends))
            self._known = (versions, floats, (scale, zero_point, bits))
        _, floats, tensors = self._known
        return (RoundAndClip.apply(x, *floats), *tensors)  # type: ignore[no-untyped-call]
