"""Losses on hidden states (B, T, H): of tokens, or of the positions of a feature map, channels last.

What is read of both: hidden states (B, T, H) by layer. Tokens that the teacher has not read add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

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

    def forward(self, student: Signal, teacher: Signal) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """The projection, the student's states and the teacher's, float32, of each comparison."""
        targets: list[tuple[int, Tensor]]
        if self.mix is not None:  # every layer looks at the same ones
            states = torch.stack([teacher.hidden[t].detach().float() for t in next(iter(self.layers.values()))])
            mixed = torch.einsum("st,t...->s...", self.mix.softmax(-1), states)
            targets = list(zip(self.layers, mixed, strict=True))
        else:
            targets = [(s, teacher.hidden[t].detach()) for s, teachers in self.layers.items() for t in teachers]
        for project, (s, t_BTH) in zip(self.project, targets, strict=True):
            yield project, student.hidden[s].float(), t_BTH.float()

    def __len__(self) -> int:
        """The number of comparisons."""
        return len(self.project)


def _of_tokens(
    own: Hints, student: Signal, teacher: Signal, batch: Batch
) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """What is compared, (N, H) each, of the N tokens alone: padding is not worth a projection."""
    where_N = batch.compared(student.hidden[next(iter(own.layers))], teacher).flatten().nonzero().squeeze(1)

    def packed(signal: Signal, layers: Iterable[int]) -> Signal:
        return replace(signal, hidden={n: signal.hidden[n].flatten(0, 1).index_select(0, where_N) for n in layers})

    yield from own(packed(student, own.layers), packed(teacher, {t for found in own.layers.values() for t in found}))


def hidden_mse(
    loss: spec.HiddenMSE | spec.EmbeddingMSE, student: Signal, teacher: Signal, batch: Batch, own: Hints
) -> Tensor:
    """Mean over comparisons, tokens and channels of (projected student − teacher)² (FitNets 2015, TinyBERT 2020)."""
    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for project, s_NH, t_NH in _of_tokens(own, student, teacher, batch):
        total = total + _projected_error(s_NH, project.weight, project.bias, t_NH) / t_NH.shape[-1]
    return total / (batch.total_tokens * len(own))


class _ProjectedError(torch.autograd.Function):
    """‖s Wᵀ + b − t‖², in few passes over (N, H of the teacher): they take a third as long as its three products."""

    @staticmethod
    def forward(ctx: Any, s_NH: Tensor, weight: Tensor, bias: Tensor, t_NH: Tensor) -> Tensor:
        error_NH = (t_NH - bias).addmm_(s_NH, weight.T, beta=-1)
        ctx.save_for_backward(s_NH, weight, error_NH)
        return torch.dot(error_NH.flatten(), error_NH.flatten())

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        s_NH, weight, error_NH = ctx.saved_tensors
        twice = 2 * slope  # times what is small
        t_grad = error_NH * -twice if ctx.needs_input_grad[3] else None
        return (error_NH @ weight) * twice, (s_NH.T @ error_NH).T * twice, error_NH.sum(0) * twice, t_grad


_projected_error: Callable[..., Tensor] = _ProjectedError.apply  # torch does not type it


def squared_error(s_BTH: Tensor, t_BTH: Tensor, batch: Batch) -> Tensor:
    """(student − teacher)², the mean over channels, summed over tokens."""
    error_BTH = (s_BTH - t_BTH).masked_fill(~batch.mask(s_BTH).unsqueeze(-1), 0.0)
    return error_BTH.square().sum() / t_BTH.shape[-1]


def hidden_cosine(loss: spec.HiddenCosine, student: Signal, teacher: Signal, batch: Batch, own: Hints) -> Tensor:
    """Mean over comparisons and tokens of 1 − cos(projected student, teacher) (DistilBERT, Sanh et al. 2019)."""
    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for project, states_NH, t_NH in _of_tokens(own, student, teacher, batch):
        s_NH = project(states_NH)
        products_N = (s_NH * F.normalize(t_NH, dim=-1)).sum(-1)
        total = total + (1 - products_N / s_NH.norm(dim=-1).clamp_min(1e-8)).sum()
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
        compared_BT = batch.compared(states_BTH, teacher)
        return F.normalize(states_BTH.float().square().sum(-1).masked_fill(~compared_BT, 0.0), dim=-1)

    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s, t in own.pairs:
        total = total + (energy(student.hidden[s]) - energy(teacher.hidden[t].detach())).square().sum()
    return total / (batch.total_examples * len(own.pairs))
