"""Losses on attention: its maps, and the relations among queries, among keys and among values.

What is read of both: queries, keys and values (B, T, D) by block. Tokens that the teacher has not read are neither
queries nor keys, like padding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd import spec
from edgekd.distill.losses.feature import Compared
from edgekd.distill.signal import Batch, Signal

FAR = -1e9
"""A score, in float32, by which softmax gives padding nothing."""


def _heads(x_BTD: Tensor, heads: int, mask_BT: Tensor, scale: float = 1.0) -> Tensor:
    """(B, heads, T, D / heads), float32, contiguous: scaled, and 0 on padding, here where it is small."""
    x = x_BTD.reshape(*x_BTD.shape[:2], heads, -1).transpose(1, 2)
    x = x.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    return x * (mask_BT[:, None, :, None] * scale)


def _queries_keys(signal: Signal, layer: int) -> tuple[Tensor, Tensor]:
    """A block's queries and keys, (B, T, D) both: fewer heads of keys serve several of queries."""
    q_BTD, k_BTD, _ = signal.attention[layer]
    shared, width = q_BTD.shape[-1] // k_BTD.shape[-1], q_BTD.shape[-1] // signal.heads
    if shared > 1:
        k_BTD = k_BTD.reshape(*k_BTD.shape[:2], -1, width).repeat_interleave(shared, 2).flatten(2)
    return q_BTD, k_BTD


def _mean_scores(signal: Signal, layer: int, groups: int, mask_BT: Tensor) -> Tensor:
    """Scores (B, groups, T, T), means over the heads of each group, 0 for padding.

    The heads of a group stand side by side, and the sum of their products is the product of all their channels.
    """
    q_BTD, k_BTD = _queries_keys(signal, layer)
    scale = groups / signal.heads / math.sqrt(q_BTD.shape[-1] / signal.heads)
    return _heads(q_BTD, groups, mask_BT, scale) @ _heads(k_BTD, groups, mask_BT).transpose(-1, -2)


def _log_weights(a: Tensor, b: Tensor, mask_BT: Tensor) -> Tensor:
    """Log-softmax of the products (B, A, T, T) of every position of ``a`` with every one of ``b``, padding aside."""
    far_B11T = (~mask_BT[:, None, None, :]) * FAR
    return F.log_softmax((a @ b.transpose(-1, -2)).add_(far_B11T), dim=-1)


def _mean_log_weights(signal: Signal, layer: int, groups: int, mask_BT: Tensor) -> Tensor:
    """Logarithms of weights (B, groups, T, T), means over the heads of each group."""
    q_BTD, k_BTD = _queries_keys(signal, layer)
    q = _heads(q_BTD, signal.heads, mask_BT, math.sqrt(signal.heads / q_BTD.shape[-1]))
    log_BATT = _log_weights(q, _heads(k_BTD, signal.heads, mask_BT), mask_BT)
    return log_BATT if groups == signal.heads else _grouped(log_BATT.exp(), groups).clamp_min(1e-30).log()


def _grouped(x_BATT: Tensor, groups: int) -> Tensor:
    batch, heads, *rest = x_BATT.shape
    return x_BATT.reshape(batch, groups, heads // groups, *rest).mean(2)


def _kl(p_BATT: Tensor, q_BATT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over queries that are no padding of KL(p ‖ q), both given as logarithms, p without a gradient."""
    weight_BATT = p_BATT.exp().mul_(mask_BT[:, None, :, None])
    return torch.dot(weight_BATT.flatten(), (p_BATT - q_BATT).flatten())


def attention_maps(loss: spec.AttentionMaps, student: Signal, teacher: Signal, batch: Batch, own: Compared) -> Tensor:
    """Mean over pairs, heads and queries of the teacher's attention against the student's.

    ``mse``: (student − teacher)² of scores before softmax, mean over keys (TinyBERT, Jiao et al. 2020); ``kl``:
    KL(teacher ‖ student) of the weights (MiniLM, Wang et al. 2020). Padding is neither query nor key. Scores are made
    of queries and keys alone: biases by position, and masks other than padding, are left out on both sides.
    """
    mask_BT, teacher = batch.compared(student.attention[own.pairs[0][0]][0], teacher), teacher.map(Tensor.detach)
    keys_B, groups = mask_BT.sum(1).clamp_min(1), math.gcd(student.heads, teacher.heads)
    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s, t in own.pairs:
        if loss.divergence == "mse":
            s_BGTT, t_BGTT = (_mean_scores(x, n, groups, mask_BT) for x, n in ((student, s), (teacher, t)))
            total = total + ((s_BGTT - t_BGTT).square().sum((1, 2, 3)) / keys_B).sum()
        else:
            s_BGTT, t_BGTT = (_mean_log_weights(x, n, groups, mask_BT) for x, n in ((student, s), (teacher, t)))
            total = total + _kl(t_BGTT, s_BGTT, mask_BT)
    return total / (batch.total_tokens * groups * len(own.pairs))


def relations(loss: spec.Relations, student: Signal, teacher: Signal, batch: Batch, own: Compared) -> Tensor:
    """Mean over pairs, relations, relation heads and tokens of KL(teacher ‖ student) (MiniLMv2, Wang et al. 2021).

    A relation is softmax(A Aᵀ / √d) with A the queries, the keys or the values, split into ``heads`` heads of width d.
    """
    mask_BT = batch.compared(student.attention[own.pairs[0][0]][0], teacher)

    def log_relation(x_BTD: Tensor) -> Tensor:
        x = _heads(x_BTD, loss.heads, mask_BT, (loss.heads / x_BTD.shape[-1]) ** 0.25)
        return _log_weights(x, x, mask_BT)

    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s, t in own.pairs:
        for kind in loss.of:
            which = "qkv".index(kind[0])
            p_BATT = log_relation(teacher.attention[t][which].detach())
            total = total + _kl(p_BATT, log_relation(student.attention[s][which]), mask_BT)
    return total / (batch.total_tokens * loss.heads * len(loss.of) * len(own.pairs))
