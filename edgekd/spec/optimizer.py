"""How weights are moved, in every training there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with linear warm-up, then linear or cosine decay to zero, and gradient clipping by global norm."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    decay: Literal["linear", "cosine"] = "linear"
    clip_norm: float = 1.0
    batch_size: int = 32
    micro_batch_size: int | None = None  # gradient accumulation: examples per forward; None: the whole batch
