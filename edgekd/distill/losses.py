"""The losses: one function per dataclass of ``edgekd.spec``, each ``(options, student, teacher, batch) -> scalar``.

Every loss is a sum over the micro-batch divided by the step's totals (see ``Batch``), computed in float32 whatever
the dtype of the signals; the teacher's signal never receives a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd import spec
from edgekd.distill.signal import Batch, Signal
from edgekd.distill.taps import layer_map


def kl(loss: spec.KL, student: Signal, teacher: Signal, batch: Batch) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over examples (Hinton, Vinyals, Dean 2015).

    The factor T² keeps the size of the gradient when the temperature changes.
    """
    t = loss.temperature
    log_p_BC = F.log_softmax(teacher.logits_BC.detach().float() / t, dim=-1)
    log_q_BC = F.log_softmax(student.logits_BC.float() / t, dim=-1)
    return t * t * F.kl_div(log_q_BC, log_p_BC, log_target=True, reduction="sum") / batch.total_examples


def ce(loss: spec.CE, student: Signal, teacher: Signal | None, batch: Batch) -> Tensor:
    """Cross-entropy against the hard labels, mean over examples; one without a label (-1) counts as nothing."""
    s_BC = student.logits_BC.float()
    return F.cross_entropy(s_BC, batch.labels_B, ignore_index=-1, reduction="sum") / batch.total_examples


def logit_mse(loss: spec.LogitMSE, student: Signal, teacher: Signal, batch: Batch) -> Tensor:
    """Mean over examples and classes of (student − teacher)² (Ba & Caruana 2014), rows centred if asked.

    Softmax ignores a constant added to all logits of an example, so ``centred`` removes each row's mean first.
    """
    s_BC, t_BC = student.logits_BC.float(), teacher.logits_BC.detach().float()
    if loss.centred:
        s_BC = s_BC - s_BC.mean(-1, keepdim=True)
        t_BC = t_BC - t_BC.mean(-1, keepdim=True)
    return F.mse_loss(s_BC, t_BC, reduction="sum") / (batch.total_examples * s_BC.shape[-1])


def hidden_mse(loss: spec.HiddenMSE, student: Signal, teacher: Signal, batch: Batch) -> Tensor:
    """Mean over layer pairs, tokens and channels of (projected student − teacher)² (FitNets 2015, TinyBERT 2020).

    ``student.hidden`` maps each *teacher* layer of the map to the student's projected states BTH.
    """
    mask_BT1 = batch.mask_BT.unsqueeze(-1)
    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for layer, s_BTH in student.hidden.items():
        t_BTH = teacher.hidden[layer].detach().float()
        error_BTH = (s_BTH.float() - t_BTH).masked_fill(~mask_BT1, 0.0)
        total = total + error_BTH.square().sum() / t_BTH.shape[-1]
    return total / (batch.total_tokens * max(1, len(student.hidden)))


LOSSES: dict[type, Callable[..., Tensor]] = {
    spec.KL: kl,
    spec.CE: ce,
    spec.LogitMSE: logit_mse,
    spec.HiddenMSE: hidden_mse,
}


def total(losses: Sequence[spec.Loss], student: Signal, teacher: Signal | None, batch: Batch) -> Tensor:
    """The weighted sum of ``losses``: a float32 scalar."""
    return torch.stack([loss.weight * LOSSES[type(loss)](loss, student, teacher, batch) for loss in losses]).sum()


class Learner(torch.nn.Module):
    """A student and the projections that take its hidden states to the teacher's width.

    Only ``model`` is kept when the training ends. ``pairs`` are (student layer, teacher layer).
    """

    def __init__(self, model: torch.nn.Module, losses: Sequence[spec.Loss], teacher: dict[str, int] | None) -> None:
        super().__init__()
        self.model = model
        self.losses = tuple(losses)
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.projections = torch.nn.ModuleDict()
        hints = [loss for loss in losses if isinstance(loss, spec.HiddenMSE)]
        if hints and teacher is not None:
            config: Any = model.config
            self.pairs = layer_map(hints[0].layers, int(config.num_hidden_layers), teacher["layers"])
            for _, t in self.pairs:
                self.projections[str(t)] = torch.nn.Linear(int(config.hidden_size), teacher["hidden"])

    def forward(self, batch: Batch) -> Tensor:
        """The weighted loss of one micro-batch."""
        out: Any = self.model(**batch.inputs, output_hidden_states=bool(self.pairs))
        hidden = {t: self.projections[str(t)](out.hidden_states[s]) for s, t in self.pairs}
        return total(self.losses, Signal(out.logits, hidden), batch.teacher, batch)
