"""Learned rounding: gradient descent decides for each weight of a linear whether it goes up or down its grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgekd.quant.moments import Moments, observed_linears
from edgekd.quant.ptq import Grid, grid

STEPS, RATE, HARDNESS = 300, 4e-2, 10.0
"""Of Adam; its learning rate; how much an undecided weight costs, next to the error of rounding to nearest as 1."""
LOW, HIGH = -0.1, 1.1
"""What the sigmoid is stretched to before it is clipped, so that it can reach 0 and 1."""
SOFTEST, HARDEST, FREE = 20.0, 2.0, 0.2
"""The exponent of the cost of being undecided: first and last; in the first fifth of the steps there is none."""


def learn_rounding(model: nn.Module, observed: dict[str, Moments]) -> None:
    """Round each linear's weight W so that its outputs change least (AdaRound, Nagel et al. 2020).

    Of the paper's loss, the squared error of a layer's outputs over the calibration tokens is (W − Ŵ) H (W − Ŵ)ᵀ
    summed over rows, H being the inputs' second moments, so no token is looked at again. Both terms are divided by
    their sizes, which makes one ``HARDNESS`` fit all layers; the paper's is 0.01 without, in 10,000 steps.
    """
    for _, layer, given in observed_linears(model, observed):
        layer.weight.data.copy_(rounded(layer.weight.detach(), grid(layer), given.second_CC))


def rounded(weight_RC: Tensor, on: Grid, second_CC: Tensor) -> Tensor:
    """``weight_RC`` on the grid, with no more error than rounding to nearest has; what the grid holds stays there."""
    exact_RC = weight_RC / on.step_RC
    low_RC = exact_RC.floor().clamp(-on.limit, on.limit - 1)
    share_RC = (exact_RC - low_RC).clamp(0, 1)

    def lost(up_RC: Tensor) -> Tensor:
        error_RC = (low_RC + up_RC - exact_RC) * on.step_RC
        return ((error_RC @ second_CC) * error_RC).sum()

    nearest = lost(share_RC.round()).clamp_min(torch.finfo(weight_RC.dtype).tiny)
    with torch.enable_grad():
        logit_RC = -((HIGH - LOW) / (share_RC - LOW) - 1).log()
        optimizer = torch.optim.Adam([logit_RC.requires_grad_()], lr=RATE)
        for step in range(STEPS):
            up_RC = (logit_RC.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)
            loss = lost(up_RC) / nearest
            if (passed := (step / STEPS - FREE) / (1 - FREE)) > 0:
                exponent = HARDEST + (SOFTEST - HARDEST) * 0.5 * (1 + math.cos(math.pi * passed))
                loss = loss + HARDNESS * (1 - (2 * up_RC - 1).abs().pow(exponent)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    up_RC = (logit_RC.detach() >= 0).to(weight_RC.dtype)
    if lost(up_RC) > nearest:
        up_RC = share_RC.round()
    return torch.where(on.held_RC != 0, on.held_RC, low_RC + up_RC) * on.step_RC
