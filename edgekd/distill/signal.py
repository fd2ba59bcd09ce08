"""What a loss sees: the outputs of one model on one batch, and the batch itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Signal:
    """One model's outputs. Suffixes name the axes: B examples, T tokens, C classes, H channels.

    ``hidden`` maps a layer (0: embedding output, n: output of block n) to its states. In a teacher's signal these
    already stand at the *student's* tokens (see ``edgekd.distill.labels``).
    """

    logits_BC: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """A micro-batch. The totals count the *whole* step, over all its micro-batches.

    Losses are sums over the micro-batch divided by these totals, so that accumulating k micro-batches gives the
    gradient of the big batch exactly, whatever their sizes and lengths.
    """

    inputs: dict[str, Tensor]
    labels_B: Tensor
    total_examples: int
    total_tokens: int
    teacher: Signal | None = None

    @property
    def mask_BT(self) -> Tensor:
        """True on tokens, false on padding."""
        return self.inputs["attention_mask"].bool()

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        teacher = self.teacher
        if teacher is not None:
            hidden = {layer: move(states) for layer, states in teacher.hidden.items()}
            teacher = Signal(move(teacher.logits_BC), hidden)
        inputs = {name: move(value) for name, value in self.inputs.items()}
        return Batch(inputs, move(self.labels_B), self.total_examples, self.total_tokens, teacher)
