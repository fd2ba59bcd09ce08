"""The student under its losses: one module that the loop trains, of which only the student is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import spec
from edgekd.distill.losses import LOSSES
from edgekd.distill.losses.exits import Exits
from edgekd.distill.losses.feature import Compared, Hints
from edgekd.distill.record import record, shape
from edgekd.distill.signal import Batch, Signal
from edgekd.distill.taps import LOGITS, check_heads, needs, pairs

BALANCE_EVERY = 50
"""Steps between two measurements of the losses' gradients."""
BALANCE_MOMENTUM = 0.7
FAINT = 1e-4
"""Of the largest gradient: less says nothing, as that of a loss at its minimum, or without labels in a batch."""
MOST_BALANCE = 1000.0
"""No loss is made louder than so many times its weight."""


class Learner(nn.Module):
    """A student, and what its losses learn beside it: projections, mixtures of layers, temperatures, heads of exits.

    ``teacher`` holds the ``layers``, ``hidden`` and ``heads`` of whoever teaches. ``shipped`` is the classifier of the
    student's first blocks that is wanted, if not the student itself. Raises ``TargetError`` for losses that the two
    models do not fit.
    """

    norms: Tensor
    steps: Tensor

    def __init__(
        self,
        model: nn.Module,
        losses: Sequence[spec.Loss],
        teacher: Mapping[str, int] | None = None,
        balance: str = "fixed",
        shipped: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.shipped = model, shipped
        self.losses = tuple(losses)
        self.needs = self.asked = LOGITS
        found: list[Any] = [None] * len(self.losses)
        if teacher is not None:
            own = shape(model)
            self.needs, self.asked = (needs(losses, own["layers"], teacher["layers"], of) for of in (0, 1))
            found = [
                Exits(model, loss, shipped) if isinstance(loss, spec.Exits) else _own(loss, own, teacher)
                for loss in self.losses
            ]
        self.own = nn.ModuleList(nn.Module() if part is None else part for part in found)
        self.balanced = balance == "gradients" and len(self.losses) > 1
        if self.balanced:
            self.register_buffer("norms", torch.zeros(len(self.losses)))  # 0: not heard yet
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))
            self.examples = 0  # of the step under way
            self.heard: list[list[Tensor]] = [[]] * len(self.losses)  # gradients, summed over them

    def forward(self, batch: Batch) -> Tensor:
        """The weighted loss of one micro-batch: a float32 scalar."""
        return self.weighted(record(self.model, batch.inputs, self.needs), batch)

    def weighted(self, student: Signal, batch: Batch) -> Tensor:
        """The same of a student's signal that is known."""
        found = torch.stack(self.values(student, batch))
        weights = torch.tensor([at(loss.weight, batch.progress) for loss in self.losses], device=found.device)
        if self.balanced:
            weights = weights * self.factors()
            if self.training:
                self._listen(found, batch)
        return (weights * found).sum()

    def factors(self) -> Tensor:
        """What each loss's weight is multiplied by, so that the gradients of all would be alike."""
        heard = self.norms > 0
        mean = self.norms.sum() / heard.sum().clamp_min(1)
        return torch.where(heard, mean / self.norms.clamp_min(1e-30), 1.0).clamp_max(MOST_BALANCE)

    def values(self, student: Signal, batch: Batch) -> list[Tensor]:
        """Each loss by itself, without its weight."""
        return [
            LOSSES[type(loss)](_now(loss, own, batch.progress), student, batch.teacher, batch, own)
            for loss, own in zip(self.losses, self.own, strict=True)
        ]

    def exits(self) -> dict[int, Any]:
        """The early exits' heads by the layer that each reads."""
        return {layer: head for own in self.own if isinstance(own, Exits) for layer, head in own.answering.items()}

    def _listen(self, found: Tensor, batch: Batch) -> None:
        """Take the norms of each loss's gradients over the student, in a whole step, into their running means.

        The factors of a step are those that the steps before gave, for all its micro-batches.
        """
        measured = int(self.steps) % BALANCE_EVERY == 0
        if measured:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            for i, value in enumerate(found):
                grads = torch.autograd.grad(value, trained, retain_graph=True, materialize_grads=True)
                before = self.heard[i] or [torch.zeros_like(g, dtype=torch.float32) for g in grads]
                self.heard[i] = [h + g for h, g in zip(before, grads, strict=True)]
        self.examples += len(batch.labels_B)
        if self.examples < batch.total_examples:
            return
        if measured:
            fresh = torch.stack([torch.stack([g.norm() for g in grads]).norm() for grads in self.heard])
            mixed = torch.where(self.norms > 0, self.norms.lerp(fresh, 1 - BALANCE_MOMENTUM), fresh)
            self.norms.copy_(torch.where(fresh > FAINT * fresh.max(), mixed, self.norms))
        self.steps += 1
        self.examples, self.heard = 0, [[]] * len(self.losses)


def at(number: float | spec.Ramp, progress: float) -> float:
    """What a number, or a ramp, is after that share of the training."""
    if not isinstance(number, spec.Ramp):
        return number
    share = min(1.0, max(0.0, (progress - number.begin) / max(number.until - number.begin, 1e-9)))
    if number.shape == "cosine":
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return number.start + share * (number.end - number.start)


def _now(loss: Any, own: Any, progress: float) -> Any:
    """``loss`` with its temperature as it is now."""
    temperature = getattr(loss, "temperature", None)
    if isinstance(temperature, spec.Ramp):
        temperature = at(temperature, progress)
    elif temperature == "learned":
        temperature = own(progress)
    else:
        return loss
    changed: Any = {"temperature": temperature}
    return replace(loss, **changed)


class Temperature(nn.Module):
    """A temperature between 1 and 21 that learns to make the student's task harder as the training goes on.

    CTKD's global temperature (Li et al. 2023): its gradient is reversed, by a factor that grows from 0 to 1 with half a
    cosine, here over the whole training and not its first epochs alone. It starts at 4.
    """

    least, span, first = 1.0, 20.0, 4.0

    def __init__(self) -> None:
        super().__init__()
        share = (self.first - self.least) / self.span
        self.logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self, progress: float) -> Tensor:
        """The temperature, its gradient reversed."""
        factor = 0.5 - 0.5 * math.cos(math.pi * progress)
        temperature = self.least + self.span * self.logit.sigmoid()
        return (1 + factor) * temperature.detach() - factor * temperature


def _own(loss: spec.Loss, student: Mapping[str, int], teacher: Mapping[str, int]) -> nn.Module | None:
    """What a loss learns itself, or the layers that it compares."""
    if getattr(loss, "temperature", None) == "learned":
        return Temperature()
    found = pairs(loss, student["layers"], teacher["layers"])
    if isinstance(loss, spec.HiddenMSE | spec.HiddenCosine | spec.EmbeddingMSE):
        mixed = getattr(loss, "layers", None) == "learned"
        return Hints(found, student["hidden"], teacher["hidden"], mixed)
    check_heads(loss, "student", student["hidden"])
    check_heads(loss, "teacher", teacher["hidden"])
    return Compared(found) if found else None
