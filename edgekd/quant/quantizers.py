"""Which Brevitas quantizers stand for which scheme: the door to brevitas.

Activations get static per-tensor scales held as parameters, set by calibration (``edgekd.quant.calibrate``) and not
trained by gradient; weights get one symmetric scale per output channel, the channel's maximum over 127 (63 in seven
bits), recomputed as the weights move.
"""

from __future__ import annotations

from typing import Any

import torch
from brevitas.core.zero_point import ParameterZeroPoint
from brevitas.inject import ExtendedInjector, this
from brevitas.inject.enum import (
    BitWidthImplType,
    FloatToIntImplType,
    QuantType,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
)
from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat
from brevitas.quant.base import IntQuant
from brevitas.quant.solver.act import ActQuantSolver

from edgekd.quant.fused import ActQuant, WeightQuant


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


class ActS8(IntQuant, _StaticScale, ActQuantSolver):  # type: ignore[misc]
    """Signed, symmetric: what ARM kernels, XNNPACK and LiteRT multiply."""


class WeightS8(Int8WeightPerChannelFloat):  # type: ignore[misc]
    """Signed, symmetric, per output channel, -127..127."""

    tensor_quant = WeightQuant


class WeightS7(Int8WeightPerChannelFloat):  # type: ignore[misc]
    """The same in -63..63: 2 x 255 x 63 stays below 2**15, where x86 without VNNI adds two products."""

    tensor_quant = WeightQuant
    bit_width = 7


class EmbeddingS8(Int8WeightPerTensorFloat):  # type: ignore[misc]
    """Signed, symmetric, one scale for the whole table, so that a gathered row needs no scale of its own."""

    tensor_quant = WeightQuant


SCHEMES: dict[str, tuple[Any, Any]] = {
    "u8s8_static": (ActU8, WeightS8),
    "u8s7_static": (ActU8, WeightS7),
    "s8s8_static": (ActS8, WeightS8),
}
"""The quantizers of a linear layer's input and of its weight."""


def act_parameters(proxy: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter | None]:
    """The parameters of an activation quantizer that calibration sets: its range (high - low, or the largest
    magnitude if signed), and minus its lowest value (None if signed and symmetric).
    """
    quant = proxy.fused_activation_quant_proxy.tensor_quant
    zero_point = quant.zero_point_impl
    return quant.scaling_impl.value, zero_point.value if isinstance(zero_point, ParameterZeroPoint) else None
