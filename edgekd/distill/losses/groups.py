"""Examples compared among each other: within groups of a fixed size, so that micro-batches add up to the big batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def grouped(x_BD: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(groups, size, D), the last group filled up with zeros, and (groups, size): which rows are examples."""
    count = len(x_BD)
    missing = -count % size
    x_BD = F.pad(x_BD, (0, 0, 0, missing))
    valid_B = F.pad(x_BD.new_ones(count), (0, missing)) > 0
    return x_BD.reshape(-1, size, x_BD.shape[-1]), valid_B.reshape(-1, size)


def centred(x: Tensor, dim: int) -> Tensor:
    """``x`` without its mean along ``dim``."""
    return x - x.mean(dim, keepdim=True)
