"""Teachers that answer while the student learns: the teacher itself, a moving average of the student, its peers."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.distill.data import Ints, Tokens, model_inputs
from edgekd.distill.labels import align
from edgekd.distill.learner import Learner
from edgekd.distill.record import record
from edgekd.distill.signal import Batch, Signal
from edgekd.distill.taps import Needs


class LiveTeacher:
    """A teacher beside the student, asked anew for every batch: what a ``LabelStore`` would hold, and no disk.

    ``tokens`` are the same examples by the teacher's own tokenizer. ``bf16``: its matrix products in bfloat16.
    ``learns``: a gradient may flow back through its signal, of which a student's losses let none through.
    """

    def __init__(
        self,
        model: Any,
        tokens: Tokens,
        needs: Needs,
        device: torch.device,
        bf16: bool = False,
        learns: bool = False,
    ) -> None:
        self.model, self.tokens, self.needs = model.eval().to(device), tokens, needs
        self.device, self.bf16, self.learns = device, bf16, learns
        self.longest = int(tokens.lengths.max())

    def signal(self, rows: Ints, tokens: Tokens, mask: NDArray[np.bool_], flat: Ints) -> Signal:
        """The teacher's signal for ``rows``, what belongs to tokens placed at the student's ``tokens``."""
        ids, own_mask, _ = self.tokens.gather(rows)
        inputs = {name: x.to(self.device) for name, x in model_inputs(ids, own_mask).items()}
        with torch.set_grad_enabled(self.learns), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            signal = record(self.model, inputs, self.needs)
        if not self.needs.tokens:
            return signal
        wanted_BT = np.where(mask, tokens.starts[flat], -1)
        place_BT, read_BT = align(wanted_BT, self.tokens.starts, self.tokens.offsets, rows, self.longest)
        where_BT = torch.from_numpy(place_BT).to(self.device)

        def at_students_tokens(x: Tensor) -> Tensor:
            return x if x.ndim == 2 else x.gather(1, where_BT.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

        return replace(signal.map(at_students_tokens), read_BT=read_BT)


class SelfTaught(nn.Module):
    """A student that learns from a moving average of itself as well (mean teacher, Tarvainen and Valpola 2017).

    Call ``follow`` once before every step. The average is part of the module's state, so that a resumed training goes
    on with it; it gets no gradient, and only the student is kept.
    """

    begun: Tensor

    def __init__(self, learner: Learner, decay: float) -> None:
        super().__init__()
        self.learner = learner
        self.decay = decay
        self.average = copy.deepcopy(learner.model).requires_grad_(False)
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def follow(self) -> None:
        """Move the average towards the student, by ``1 - decay`` of the way; all of it the first time."""
        with torch.no_grad():
            own, average = self.learner.model.state_dict(), self.average.state_dict()
            for name, value in own.items():
                if value.is_floating_point() and self.begun:
                    average[name].lerp_(value, 1 - self.decay)
                else:
                    average[name].copy_(value)
            self.begun.fill_(True)

    def forward(self, batch: Batch) -> Tensor:
        """The weighted loss of one micro-batch, the average its teacher."""
        with torch.no_grad():
            signal = record(self.average.eval(), batch.inputs, self.learner.asked)
        loss: Tensor = self.learner(batch.by(signal))
        return loss


class Cohort(nn.Module):
    """Students that teach each other (deep mutual learning, Zhang et al. 2018); the first is the one that is kept.

    Each is under its own losses; its teacher is the mean of the others' answers, which get no gradient from it. The
    last may be the teacher itself, whose signal has come with the batch, from a ``LiveTeacher`` that learns.
    """

    def __init__(self, learners: list[Learner]) -> None:
        super().__init__()
        self.learners = nn.ModuleList(learners)

    def forward(self, batch: Batch) -> Tensor:
        """The sum of the members' weighted losses on one micro-batch."""
        given = [batch.teacher] if batch.teacher is not None else []
        students = self._members()[: len(self.learners) - len(given)]
        signals = [record(one.model, batch.inputs, self._wanted(one)) for one in students] + given
        total = batch.labels_B.new_zeros((), dtype=torch.float32)
        for i, learner in enumerate(self._members()):
            others = [signal.map(Tensor.detach) for j, signal in enumerate(signals) if j != i]
            total = total + learner.weighted(signals[i], batch.by(mean(others)))
        return total

    def _wanted(self, member: Any) -> Needs:
        """What its own losses look at, and those of the others."""
        found: Needs = reduce(or_, (other.asked for other in self._members() if other is not member), member.needs)
        return found

    def _members(self) -> list[Any]:
        return list(self.learners)


def mean(signals: list[Signal], weights_KB: Tensor | None = None) -> Signal:
    """The answers of K teachers as one: log-probabilities of their mean probability; all else of the first.

    ``weights_KB`` add up to 1 in each example; without them every teacher counts alike.
    """
    log_p_KBC = torch.stack([signal.logits_BC.float().log_softmax(-1) for signal in signals])
    if weights_KB is None:
        weights_KB = log_p_KBC.new_full(log_p_KBC.shape[:2], 1 / len(signals))
    return replace(signals[0], logits_BC=(log_p_KBC + weights_KB.log().unsqueeze(-1)).logsumexp(0))
