"""Low-rank adaptation (LoRA, Hu et al. 2022): a large backbone stands still, narrow matrices beside it learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.errors import TargetError


class LowRank(nn.Module):
    """A linear layer that stands still, plus ``scale`` times a product of two matrices of ``rank``: zero at first."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), scale
        like = linear.weight
        self.down_RI = nn.Parameter(torch.empty(rank, linear.in_features, dtype=like.dtype, device=like.device))
        self.up_OR = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=like.dtype, device=like.device))
        nn.init.kaiming_uniform_(self.down_RI, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """As the linear layer with the corrected weight, which is never formed here."""
        y: Tensor = self.linear(x) + self.scale * F.linear(F.linear(x, self.down_RI), self.up_OR)
        return y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer, its weight corrected in place."""
        self.linear.weight += self.scale * (self.up_OR @ self.down_RI)
        return self.linear.requires_grad_(True)


def attach(model: Any, rank: int, alpha: float) -> None:
    """Put a correction on every linear layer of a classifier's backbone and freeze the rest of it, in place.

    The head stays trainable. Raises ``TargetError`` for a backbone without linear layers (GPT-2's are of another kind).
    """
    backbone = getattr(model, model.base_model_prefix).requires_grad_(False)
    for name, linear in corrected(model).items():
        backbone.set_submodule(name, LowRank(linear, rank, alpha / rank))


def corrected(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of a classifier's backbone that ``attach`` corrects. Raises as that does."""
    backbone = getattr(model, model.base_model_prefix)
    found = {name: module for name, module in backbone.named_modules() if type(module) is nn.Linear}
    if not found:
        raise TargetError(
            f"teacher.finetune.train='lora' corrects linear layers, and {type(backbone).__name__} has none: choose "
            "'all' or 'head'"
        )
    return found


def merge(model: Any) -> None:
    """Make a model with corrections what it was before, its weights corrected."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRank):
            model.set_submodule(name, module.merged())
    model.requires_grad_(True)
