"""Losses on attention: its maps, and the relations among queries, among keys and among values."""

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


def _split(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, heads, T, D / heads), float32."""
    return x_BTD.float().reshape(*x_BTD.shape[:2], heads, -1).transpose(1, 2)


def _products(a_BTD: Tensor, b_BTD: Tensor, a_heads: int, b_heads: int) -> Tensor:
    """Scaled products (B, A, T, T) of every position with every other; fewer heads of ``b`` serve several of ``a``."""
    a, b = _split(a_BTD, a_heads), _split(b_BTD, b_heads)
    if a_heads != b_heads:
        b = b.repeat_interleave(a_heads // b_heads, dim=1)
    return a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])


def _scores(signal: Signal, layer: int, groups: int, divergence: str, mask_BT: Tensor) -> Tensor:
    """Scores (0 on padded keys), or log-weights, of a block's attention: means over ``groups`` groups of heads."""
    q, k, _ = signal.attention[layer]
    products_BATT = _products(q, k, signal.heads, k.shape[-1] * signal.heads // q.shape[-1])
    padding_B11T = ~mask_BT[:, None, None, :]
    if divergence == "mse":
        return _grouped_heads(products_BATT, groups).masked_fill(padding_B11T, 0.0)
    weights_BATT = F.softmax(products_BATT.masked_fill(padding_B11T, FAR), dim=-1)
    return _grouped_heads(weights_BATT, groups).clamp_min(1e-30).log()


def _grouped_heads(x_BATT: Tensor, groups: int) -> Tensor:
    batch, heads, *rest = x_BATT.shape
    return x_BATT.reshape(batch, groups, heads // groups, *rest).mean(2)


def attention_maps(loss: spec.AttentionMaps, student: Signal, teacher: Signal, batch: Batch, own: Compared) -> Tensor:
    """Mean over pairs, heads and queries of the teacher's attention against the student's.

    ``mse``: (student − teacher)² of scores before softmax, mean over keys (TinyBERT, Jiao et al. 2020); ``kl``:
    KL(teacher ‖ student) of the weights (MiniLM, Wang et al. 2020). Padding is neither query nor key. Scores are made
    of queries and keys alone: biases by position, and masks other than padding, are left out on both sides.
    """
    mask_BT, teacher = batch.mask_BT, teacher.map(Tensor.detach)
    keys_B = mask_BT.sum(1).clamp_min(1)
    groups = math.gcd(student.heads, teacher.heads)
    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s, t in own.pairs:
        s_BGTT = _scores(student, s, groups, loss.divergence, mask_BT)
        t_BGTT = _scores(teacher, t, groups, loss.divergence, mask_BT)
        if loss.divergence == "mse":
            found_BGT = (s_BGTT - t_BGTT).square().sum(-1) / keys_B[:, None, None]
        else:
            found_BGT = F.kl_div(s_BGTT, t_BGTT, log_target=True, reduction="none").sum(-1)
        total = total + found_BGT.masked_fill(~mask_BT[:, None], 0.0).sum()
    return total / (batch.total_tokens * groups * len(own.pairs))


def relations(loss: spec.Relations, student: Signal, teacher: Signal, batch: Batch, own: Compared) -> Tensor:
    """Mean over pairs, relations, relation heads and tokens of KL(teacher ‖ student) (MiniLMv2, Wang et al. 2021).

    A relation is softmax(A Aᵀ / √d) with A the queries, the keys or the values, split into ``heads`` heads of width d.
    """
    mask_BT = batch.mask_BT

    def log_relation(x_BTD: Tensor) -> Tensor:
        products_BATT = _products(x_BTD, x_BTD, loss.heads, loss.heads)
        return F.log_softmax(products_BATT.masked_fill(~mask_BT[:, None, None, :], FAR), dim=-1)

    total = student.logits_BC.new_zeros((), dtype=torch.float32)
    for s, t in own.pairs:
        for kind in loss.of:
            which = "qkv".index(kind[0])
            p_BATT, q_BATT = (
                log_relation(teacher.attention[t][which].detach()),
                log_relation(student.attention[s][which]),
            )
            found_BAT = F.kl_div(q_BATT, p_BATT, log_target=True, reduction="none").sum(-1)
            total = total + found_BAT.masked_fill(~mask_BT[:, None], 0.0).sum()
    return total / (batch.total_tokens * loss.heads * len(loss.of) * len(own.pairs))
