"""The loss of early exits: a student's deeper layers teach heads on its shallower ones (self-distillation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekd import spec
from edgekd.distill.losses import feature, response
from edgekd.distill.signal import Batch, Signal
from edgekd.distill.taps import check_exits
from edgekd.models.exits import answer, head


class Exits(nn.Module):
    """The heads of a student's exits by the layer that each reads; ``answering`` has the one of ``shipped``, too.

    ``shipped`` is a classifier of the student's first blocks that has its head itself, and belongs to the learner.
    Raises ``TargetError`` as ``check_exits`` does.
    """

    def __init__(self, model: Any, loss: spec.Exits, shipped: Any = None) -> None:
        super().__init__()
        self.deepest = int(model.config.num_hidden_layers)
        check_exits((loss,), model.config.model_type, self.deepest)
        ready = {} if shipped is None else {int(shipped.config.num_hidden_layers): shipped}
        self.heads = nn.ModuleDict({str(layer): head(model) for layer in loss.at if layer not in ready})
        self.answering: dict[int, Any] = {n: ready[n] if n in ready else self.heads[str(n)] for n in loss.at}


def exits(loss: spec.Exits, student: Signal, teacher: Signal | None, batch: Batch, own: Exits) -> Tensor:
    """Σ over exits of labels · CE + answers · T² KL(deepest ‖ exit) + hidden · mean (states − deepest states)².

    The deepest answers and states get no gradient (Zhang et al. 2019, their squared distance as a mean over tokens and
    channels). An example without a label adds nothing to the cross-entropy.
    """
    deepest = Signal(student.logits_BC.detach())
    states_BTH = student.hidden[own.deepest].detach().float()
    divergence = spec.KL(temperature=loss.temperature)
    total = torch.zeros((), device=student.logits_BC.device)
    for layer, classifier in own.answering.items():
        found = Signal(answer(classifier, student.hidden[layer]))
        total = total + loss.labels * response.ce(spec.CE(), found, None, batch)
        total = total + loss.answers * response.kl(divergence, found, deepest, batch)
        error = feature.squared_error(student.hidden[layer].float(), states_BTH, batch)
        total = total + loss.hidden * error / batch.total_tokens
    return total
