"""What a loss sees: the outputs of one model on one batch, and the batch itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Signal:
    """One model's outputs. Suffixes name the axes: B examples, T tokens, C classes, H channels.

    ``hidden`` maps a layer (0: embedding output, n: output of block n) to its states. ``attention`` maps a block (from
    1) to its queries, keys and values, (B, T, channels of all heads), and ``heads`` says how many heads the queries
    have. ``pooled_BH`` is the mean of an example's last hidden states. In a teacher's signal what belongs to tokens
    already stands at the *student's* tokens (see ``edgekd.distill.labels``). ``known_BC`` says of which classes the
    probability is known, where it is not all: the others share what is left. ``read_BT`` says which of the student's
    tokens a teacher has read, where it is not all: it cut that text earlier.
    """

    logits_BC: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, QKV] = field(default_factory=dict)
    heads: int = 0
    pooled_BH: Tensor | None = None
    known_BC: Tensor | None = None
    read_BT: Tensor | None = None

    @property
    def answers_B(self) -> Tensor:
        """The most probable class of those that are known."""
        logits_BC = self.logits_BC
        return (logits_BC if self.known_BC is None else logits_BC.masked_fill(~self.known_BC, -torch.inf)).argmax(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Signal:
        """The same with every tensor changed."""
        return replace(
            self,
            logits_BC=change(self.logits_BC),
            hidden={layer: change(states) for layer, states in self.hidden.items()},
            attention={n: (change(q), change(k), change(v)) for n, (q, k, v) in self.attention.items()},
            pooled_BH=None if self.pooled_BH is None else change(self.pooled_BH),
            known_BC=None if self.known_BC is None else change(self.known_BC),
            read_BT=None if self.read_BT is None else change(self.read_BT),
        )


def mask(inputs: Mapping[str, Tensor], states_BTH: Tensor) -> Tensor:
    """(B, T): which of these states belong to something; all of them where inputs are never padded, as pictures."""
    given = inputs.get("attention_mask")
    return states_BTH.new_ones(states_BTH.shape[:2], dtype=torch.bool) if given is None else given.bool()


@dataclass(frozen=True)
class Batch:
    """A micro-batch. The totals count the *whole* step, over all its micro-batches.

    Losses are sums over the micro-batch divided by these totals, so that accumulating k micro-batches gives the
    gradient of the big batch exactly, whatever their sizes and lengths. ``progress`` is the share of the training that
    is done.
    """

    inputs: dict[str, Tensor]
    labels_B: Tensor
    total_examples: int
    total_tokens: int
    teacher: Signal | None = None
    progress: float = 0.0

    def mask(self, states_BTH: Tensor) -> Tensor:
        """(B, T): true on tokens, false on padding; see ``edgekd.distill.signal.mask``."""
        return mask(self.inputs, states_BTH)

    def compared(self, states_BTH: Tensor, teacher: Signal) -> Tensor:
        """(B, T): true on tokens that the teacher, too, has read."""
        found_BT = self.mask(states_BTH)
        return found_BT if teacher.read_BT is None else found_BT & teacher.read_BT

    def by(self, teacher: Signal) -> Batch:
        """The same batch with another teacher."""
        return replace(self, teacher=teacher)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        return replace(
            self,
            inputs={name: move(value) for name, value in self.inputs.items()},
            labels_B=move(self.labels_B),
            teacher=None if self.teacher is None else self.teacher.map(move),
        )
