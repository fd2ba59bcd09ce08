"""Where the learned scale of a weight starts: at the range with the least squared error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STEPS = 80
"""Ranges tried for each scale, from the largest magnitude down to 1/80 of it."""


def start(module: Any) -> None:
    """Set the learned scales of ``module``'s weight, where it has such (``quantizers.of(learned=True)``)."""
    quant = module.weight_quant.tensor_quant
    value = getattr(quant.scaling_impl, "value", None)
    if value is None:
        return
    weight = module.weight.detach()
    rows = weight.flatten(1) if value.numel() > 1 else weight.reshape(1, -1)
    high = float(quant.int_quant.max_int(quant.msb_clamp_bit_width_impl()))
    value.data.copy_(least_error(rows, high).reshape(value.shape))


def least_error(rows_RN: Tensor, high: float) -> Tensor:
    """The magnitude of each row, shape (R,), that becomes the integer ``high`` with the least squared error in the row.

    Symmetric, half to even, larger values clipped. A row of zeros gets 1.
    """
    largest_R1 = rows_RN.abs().amax(1, keepdim=True)
    largest_R1 = torch.where(largest_R1 > 0, largest_R1, torch.ones_like(largest_R1))
    best_R1, least_R1 = largest_R1, torch.full_like(largest_R1, torch.inf)
    for share in torch.linspace(1, 1 / STEPS, STEPS).tolist():
        scale_R1 = largest_R1 * (share / high)
        rounded = torch.div(rows_RN, scale_R1).round_().clamp_(-high, high).mul_(scale_R1)
        error_R1 = rounded.sub_(rows_RN).square_().sum(1, keepdim=True)
        better = error_R1 < least_R1
        best_R1 = torch.where(better, largest_R1 * share, best_R1)
        least_R1 = torch.minimum(error_R1, least_R1)
    return best_R1.flatten()
