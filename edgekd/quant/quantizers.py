"""Which Brevitas quantizers stand for which scheme: the door to brevitas.

Activations get static per-tensor scales held as parameters, set by calibration (``edgekd.quant.calibrate``); weights
get one symmetric scale per output channel, the channel's maximum over 127 (63 in seven bits), recomputed as the weights
move. Four-bit weights get one for every block of a row. Scales may be learned instead, weights' too.
"""

from __future__ import annotations

from typing import Any

import torch
from brevitas.core.quant import RescalingIntQuant
from brevitas.core.scaling import ParameterScaling
from brevitas.core.zero_point import ParameterZeroPoint
from brevitas.inject import ExtendedInjector, this
from brevitas.inject.enum import (
    BitWidthImplType,
    FloatToIntImplType,
    QuantType,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
    StatsOp,
)
from brevitas.proxy.groupwise_int_parameter_quant import GroupwiseWeightQuantProxyFromInjector
from brevitas.proxy.runtime_quant import DynamicActQuantProxyFromInjector
from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat
from brevitas.quant.base import IntQuant
from brevitas.quant.solver.act import ActQuantSolver

from edgekd.quant.fused import ActQuant, LearnedActQuant, LearnedQuant, WeightQuant
from edgekd.shape import block_size


class _StaticScale(ExtendedInjector):  # type: ignore[misc]
    scaling_impl_type = ScalingImplType.PARAMETER
    scaling_per_output_type = ScalingPerOutputType.TENSOR
    restrict_scaling_type = RestrictValueType.FP
    bit_width = 8
    scaling_init = 1.0
    tensor_quant = ActQuant


class ActU8(_StaticScale, ActQuantSolver):  # type: ignore[misc]
    """Unsigned, asymmetric: x86 kernels multiply u8 activations with s8 weights."""

    quant_type = QuantType.INT
    bit_width_impl_type = BitWidthImplType.CONST
    float_to_int_impl_type = FloatToIntImplType.ROUND
    narrow_range = False
    signed = False
    quantize_zero_point = True
    zero_point_impl = ParameterZeroPoint
    zero_point_init = 0.0
    zero_point_shape = this.scaling_shape


class _DynamicScale(torch.nn.Module):
    """(high - low) / 255 over the whole tensor, 0 included, as ``DynamicQuantizeLinear`` has it; not trained."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        low, high = torch.aminmax(x.detach())
        return ((high.clamp_min(0) - low.clamp_max(0)) / threshold).clamp_min(1e-30)


class _DynamicZeroPoint(torch.nn.Module):
    """The integer that stands for 0."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, scale: torch.Tensor, bit_width: torch.Tensor) -> torch.Tensor:
        return (-x.detach().min().clamp_max(0) / scale).round().clamp(0, 255)


class ActU8Dynamic(ActU8):
    """The same with a range found anew for every tensor, all rows of a batch together."""

    proxy_class = DynamicActQuantProxyFromInjector
    tensor_quant = RescalingIntQuant  # the fast one works its range out once
    scaling_impl = _DynamicScale
    scaling_stats_op = StatsOp.MIN_MAX
    zero_point_impl = _DynamicZeroPoint


class ActS8(IntQuant, _StaticScale, ActQuantSolver):  # type: ignore[misc]
    """Signed, symmetric: what ARM kernels, XNNPACK and LiteRT multiply."""


class _LargestMagnitude(torch.nn.Module):
    """The largest magnitude that shares a scale, over the largest integer; not trained.

    Brevitas' own arrives at the same numbers by some thirty small operations, a third of a quantized step's extra time.
    """

    def __init__(self, scaling_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kept = len(scaling_shape) > 0

    def forward(self, x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        if self.kept:
            largest = x.detach().abs().amax(tuple(range(1, x.ndim)), keepdim=True)
        else:  # of a whole table, which is large: no second one beside it
            low, high = torch.aminmax(x.detach())
            largest = torch.maximum(-low, high)
        return largest.clamp_min_(1e-10).div_(threshold)


class WeightS8(Int8WeightPerChannelFloat):  # type: ignore[misc]
    """Signed, symmetric, per output channel, -127..127."""

    tensor_quant = WeightQuant
    scaling_impl = _LargestMagnitude


class WeightS7(Int8WeightPerChannelFloat):  # type: ignore[misc]
    """The same in -63..63: 2 x 255 x 63 stays below 2**15, where x86 without VNNI adds two products."""

    tensor_quant = WeightQuant
    scaling_impl = _LargestMagnitude
    bit_width = 7


class EmbeddingS8(Int8WeightPerTensorFloat):  # type: ignore[misc]
    """Signed, symmetric, one scale for the whole table, so that a gathered row needs no scale of its own."""

    tensor_quant = WeightQuant
    scaling_impl = _LargestMagnitude


class _HalfScale(torch.nn.Module):
    """Rounds scales to float16, in which the file stores them, and never to 0; the gradient passes straight through."""

    def __init__(self) -> None:  # injection looks at what a class's own constructor takes
        super().__init__()

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        return scale.detach().clamp_min(2**-24).half().float() + (scale - scale.detach())


class _BlockProxy(GroupwiseWeightQuantProxyFromInjector):  # type: ignore[misc]
    """Gives the weight back in its own shape, without the blocks' dimension and their padding."""

    def forward(self, x: torch.Tensor) -> Any:
        out = super().forward(x)
        return out.flatten(1)[:, : x.shape[1]] if self.skip_create_quant_tensor else out


class WeightB4(Int8WeightPerTensorFloat):  # type: ignore[misc]
    """Signed, symmetric, one float16 scale for each block of ``group_size`` weights of a row, -7..7."""

    tensor_quant = WeightQuant
    proxy_class = _BlockProxy
    scaling_per_output_type = ScalingPerOutputType.GROUP
    restrict_scale_threshold_impl = _HalfScale
    bit_width = 4


SCHEMES: dict[str, tuple[Any, Any, Any]] = {
    "u8s8_static": (ActU8, WeightS8, EmbeddingS8),
    "u8s7_static": (ActU8, WeightS7, EmbeddingS8),
    "s8s8_static": (ActS8, WeightS8, EmbeddingS8),
    "u8s8_dynamic": (ActU8Dynamic, WeightS8, EmbeddingS8),
    "w4_block": (None, WeightB4, WeightB4),
}
"""The quantizers of a linear layer's input, of its weight, and of an embedding table."""


def of(
    scheme: str,
    learned: bool = False,
    weight_bits: int | None = None,
    act_bits: int | None = None,
    per_channel: bool = True,
) -> tuple[Any, Any, Any]:
    """The quantizers of ``scheme`` (see ``SCHEMES``); the keywords depart from it.

    ``learned`` scales are parameters to train: of activations with a static range, and of linear layers' weights, where
    they are to be set first (``least_error``). Fewer bits make integers fewer, not smaller: the files hold them in
    the scheme's types.
    """
    act, weight, table = SCHEMES[scheme]
    if learned:
        act = act.let(tensor_quant=LearnedActQuant)
        weight = weight.let(
            tensor_quant=LearnedQuant,
            scaling_impl_type=ScalingImplType.PARAMETER,
            scaling_impl=ParameterScaling,
            scaling_init=1.0,
        )
    if weight_bits is not None:
        weight = weight.let(bit_width=weight_bits)
    if act_bits is not None:
        act = act.let(bit_width=act_bits)
    if not per_channel:
        weight = weight.let(scaling_per_output_type=ScalingPerOutputType.TENSOR)
    return act, weight, table


def sized(weight: Any, width: int, block: int) -> Any:
    """The quantizer for rows of ``width``; in blocks, of ``block`` or of the least power of two that holds a row."""
    return weight.let(group_size=block_size(width, block)) if weight is WeightB4 else weight


def is_static(proxy: Any) -> bool:
    """Whether an activation quantizer has a range that calibration sets."""
    quant = proxy.fused_activation_quant_proxy
    return quant is not None and hasattr(quant.tensor_quant.scaling_impl, "value")


def act_parameters(proxy: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter | None]:
    """The parameters of an activation quantizer that calibration sets: its range (high - low, or the largest
    magnitude if signed), and minus its lowest value (None if signed and symmetric).
    """
    quant = proxy.fused_activation_quant_proxy.tensor_quant
    zero_point = quant.zero_point_impl
    return quant.scaling_impl.value, zero_point.value if isinstance(zero_point, ParameterZeroPoint) else None


def at_output(proxy: Any, cut: tuple[float, float | None] | None) -> None:
    """Note that a quantizer is one of a layer's output, of which the model keeps only what is inside ``cut``."""
    proxy.cut = cut  # for calibration: no integers for what is clipped next
    if proxy.fused_activation_quant_proxy is not None:
        proxy.fused_activation_quant_proxy.tensor_quant.exposed = True


def share(proxy: Any) -> None:
    """Note that an activation quantizer is given the same tensor several times in a row."""
    if proxy.fused_activation_quant_proxy is not None:
        proxy.fused_activation_quant_proxy.tensor_quant.shared = True


def levels(proxy: Any) -> int:
    """Steps between the least and the largest integer of an activation quantizer."""
    return int(2 ** int(proxy.fused_activation_quant_proxy.tensor_quant.msb_clamp_bit_width_impl()) - 1)
