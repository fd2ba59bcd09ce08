"""How a training goes, and what of a teacher is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finetune", "Optimizer"]


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


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune the teacher's backbone on the task before it teaches (cross-entropy on the labels).

    ``train="lora"`` trains a fresh head and, on every linear layer of the backbone, a correction of ``rank``, scaled by
    ``alpha / rank`` and merged into its weight afterwards (LoRA, Hu et al. 2022). ``"head"`` trains the head alone, on
    what the frozen backbone says once of each example: ``epochs``, ``optimizer`` and ``dropout`` then mean nothing.
    """

    epochs: float = 3
    optimizer: Optimizer = Optimizer(learning_rate=5e-5)
    dropout: float | None = None  # None: as the model's configuration says
    train: Literal["all", "lora", "head"] = "all"
    rank: int = 8
    alpha: float = 16
