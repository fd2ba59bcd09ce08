"""Losses on hidden states: of tokens, or of the positions of a feature map, channels last."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd import spec
from edgekd.distill.signal import Batch, Signal
from edgekd.spec.losses import Pairs


class Hints(nn.Module):
    """Which layers are compared, and the projections that take the student's states to the teacher's width.

    A linear layer over channels is the 1x1 convolution of a feature map. Where widths are equal it starts as identity.
    With ``mixed``, each layer of the student has one target, a mixture of all its teacher layers, learned too.
    """

    def __init__(self, pairs: Pairs, student_width: int, teacher_width: int, mixed: bool = False) -> None:
        super().__init__()
        self.layers = {s: [t for other, t in pairs if other == s] for s, _ in pairs}
        count = len(self.layers) if mixed else len(pairs)
        layers = [nn.Linear(student_width, teacher_width) for _ in range(count)]
        self.mix = nn.Parameter(torch.zeros(count, len(pairs) // count)) if mixed else None
        if student_width == teacher_width:
            for layer in layers:
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.project = nn.ModuleList(layers)

    def forward(self, student: Signal, teacher: Signal) -> Iterator[tuple[Tensor, Tensor]]:
        """(projected student states, teacher states), float32, of each comparison."""
        project = iter(self.project)
        for i, (s, teachers) in enumerate(self.layers.items()):
            states = [teacher.hidden[t].detach().float() for t in teachers]
            if self.mix is not None:
                states = [torch.einsum("n,n...->...", self.mix[i].softmax(-1), torch.stack(states))]
            for t_BTH in states:
                yield next(project)(student.hidden[s].float()), t_BTH

    def __len__(self) -> int:
        """The number of comparisons."""
        return len(self.project)


def hidden_mse(
    loss: spec.HiddenMSE | spec.EmbeddingMSE, student: Signal, teacher: Signal, batch: Batch, own: Hints
) -> Tensor:
    """Mean over comparisons, tokens and channels of (projected student − teacher)² (FitNets 2015, TinyBERT 2020)."""
    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s_BTH, t_BTH in own(student, teacher):
        total = total + squared_error(s_BTH, t_BTH, batch)
    return total / (batch.total_tokens * len(own))


def squared_error(s_BTH: Tensor, t_BTH: Tensor, batch: Batch) -> Tensor:
    """(student − teacher)², the mean over channels, summed over tokens."""
    error_BTH = (s_BTH - t_BTH).masked_fill(~batch.mask_BT.unsqueeze(-1), 0.0)
    return error_BTH.square().sum() / t_BTH.shape[-1]


def hidden_cosine(loss: spec.HiddenCosine, student: Signal, teacher: Signal, batch: Batch, own: Hints) -> Tensor:
    """Mean over comparisons and tokens of 1 − cos(projected student, teacher) (DistilBERT, Sanh et al. 2019)."""
    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s_BTH, t_BTH in own(student, teacher):
        total = total + (1 - F.cosine_similarity(s_BTH, t_BTH, dim=-1))[batch.mask_BT].sum()
    return total / (batch.total_tokens * len(own))


class Compared(nn.Module):
    """The pairs of layers that a loss without parameters of its own compares."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs


def attention_transfer(
    loss: spec.AttentionTransfer, student: Signal, teacher: Signal, batch: Batch, own: Compared
) -> Tensor:
    """Mean over pairs and examples of ‖e(student) / ‖e(student)‖ − e(teacher) / ‖e(teacher)‖‖².

    e is the energy of each position, the sum of its squared channels (Zagoruyko and Komodakis 2017, with p = 2, squared
    so that its gradient stays finite).
    """

    def energy(states_BTH: Tensor) -> Tensor:
        states_BTH = states_BTH.float().masked_fill(~batch.mask_BT.unsqueeze(-1), 0.0)
        return F.normalize(states_BTH.square().sum(-1), dim=-1)

    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s, t in own.pairs:
        total = total + (energy(student.hidden[s]) - energy(teacher.hidden[t].detach())).square().sum()
    return total / (batch.total_examples * len(own.pairs))
