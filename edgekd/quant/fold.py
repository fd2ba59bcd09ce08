"""Batch norm becomes part of the convolution before it: one multiplication and one rounding, instead of two."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from edgekd.quant.flow import watch


@torch.no_grad()
def fold_batch_norms(model: Any, example: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Put each ``nn.BatchNorm2d`` into the ``nn.Conv2d`` whose output it reads, in place; return the paths of both.

    The model computes afterwards what it computed in evaluation mode, whatever its mode. ``example`` is a batch of
    inputs by which is found who reads what. Left as it is, and then computed in float, is a batch norm without running
    statistics, one that reads something else than a convolution's output (before an activation, behind a sum), and one
    whose convolution is read by something else too, or called more than once: folding would change what those get.
    """
    modules = dict(model.named_modules())
    norms = {name for name, module in modules.items() if type(module) is nn.BatchNorm2d and module.track_running_stats}
    if not norms:
        return ()
    flow = watch(model, example)
    folded = []
    for name, conv in modules.items():
        norm = flow.reader(name) if type(conv) is nn.Conv2d else None
        if norm is None or norm not in norms or len(flow.made[norm]) != 1:
            continue
        bn = modules[norm]
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        conv.bias.requires_grad_(conv.weight.requires_grad)  # a bias that was not there before is learned too
        model.set_submodule(norm, nn.Identity())
        folded += [name, norm]
    return tuple(folded)


def freeze_batch_norms(model: nn.Module) -> None:
    """Let batch norms that could not be folded keep their running statistics from here on, also in training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
