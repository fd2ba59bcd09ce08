"""Losses on the answers: what the student's logits should be, given the teacher's or the labels.

What is read of both: logits (B, C).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd import spec
from edgekd.distill.losses.groups import centred, grouped
from edgekd.distill.signal import Batch, Signal

NEVER = -1e4
"""A log-probability whose exponential is 0 in float32, and whose gradients are finite."""


def _log_probabilities(loss: Any, student: Signal, teacher: Signal) -> tuple[Tensor, Tensor]:
    """Log-softmax of the teacher's and of the student's logits over the temperature, float32."""
    t = loss.temperature
    return (
        F.log_softmax(teacher.logits_BC.detach().float() / t, dim=-1),
        F.log_softmax(student.logits_BC.float() / t, dim=-1),
    )


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q), summed over examples."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum")


def _scaled(loss: Any, total: Tensor, batch: Batch) -> Tensor:
    """T² times the mean over the step's examples: the factor keeps the gradient's size as the temperature changes."""
    found: Tensor = loss.temperature * loss.temperature * total / batch.total_examples
    return found


def kl(loss: spec.KL, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over examples (Hinton, Vinyals, Dean 2015)."""
    log_p_BC, log_q_BC = _log_probabilities(loss, student, teacher)
    return _scaled(loss, _divergence(log_p_BC, log_q_BC), batch)


def partial_kl(loss: spec.PartialKL, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """KL(teacher ‖ student) over the classes that the teacher knows and one bin for all others, mean over examples.

    What coarser bins cannot tell apart counts as equal, so it is never more than the whole KL (the log sum inequality,
    Cover and Thomas 2006); that is what it is where all classes are known.
    """
    log_p_BC = F.log_softmax(teacher.logits_BC.detach().float(), dim=-1).clamp_min(NEVER)
    log_q_BC = F.log_softmax(student.logits_BC.float(), dim=-1)
    if teacher.known_BC is not None:
        known_BC = teacher.known_BC
        log_p_BC, log_q_BC = (
            torch.cat([x.masked_fill(~known_BC, NEVER), x.masked_fill(known_BC, NEVER).logsumexp(-1, keepdim=True)], -1)
            for x in (log_p_BC, log_q_BC)
        )
    return _divergence(log_p_BC, log_q_BC) / batch.total_examples


def reverse_kl(loss: spec.ReverseKL, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """T² · KL(softmax(student / T) ‖ softmax(teacher / T)), mean over examples (Gu et al., MiniLLM, 2024)."""
    log_p_BC, log_q_BC = _log_probabilities(loss, student, teacher)
    return _scaled(loss, _divergence(log_q_BC, log_p_BC), batch)


def js(loss: spec.JS, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """T² · (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2, mean over examples (Lin 1991)."""
    log_p_BC, log_q_BC = _log_probabilities(loss, student, teacher)
    log_m_BC = torch.logaddexp(log_p_BC, log_q_BC) - math.log(2)
    return _scaled(loss, (_divergence(log_p_BC, log_m_BC) + _divergence(log_q_BC, log_m_BC)) / 2, batch)


def ce(loss: spec.CE, student: Signal, teacher: Signal | None, batch: Batch, own: Any = None) -> Tensor:
    """−Σ target · log softmax(student), mean over examples; the target is the label, or the teacher's answer.

    A label of -1 counts as nothing. ``smoothing`` gives that share of the target to all classes alike (Szegedy et al.
    2016).
    """
    labels_B = batch.labels_B
    if loss.labels == "teacher":
        assert teacher is not None
        labels_B = teacher.answers_B
    s_BC = student.logits_BC.float()
    total = F.cross_entropy(s_BC, labels_B, ignore_index=-1, reduction="sum", label_smoothing=loss.smoothing)
    return total / batch.total_examples


def logit_mse(loss: spec.LogitMSE, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """Mean over examples and classes of (student − teacher)² (Ba & Caruana 2014), rows centred if asked.

    Softmax ignores a constant added to all logits of an example, so ``centred`` removes each row's mean first.
    """
    s_BC, t_BC = student.logits_BC.float(), teacher.logits_BC.detach().float()
    if loss.centred:
        s_BC, t_BC = centred(s_BC, -1), centred(t_BC, -1)
    return F.mse_loss(s_BC, t_BC, reduction="sum") / (batch.total_examples * s_BC.shape[-1])


def dkd(loss: spec.DKD, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """T² · (target · KL of (p_y, 1 − p_y) + others · KL of p without y), mean over examples (Zhao et al. 2022)."""
    log_p_BC, log_q_BC = _log_probabilities(loss, student, teacher)
    y_B1 = torch.where(batch.labels_B < 0, log_p_BC.argmax(-1), batch.labels_B).unsqueeze(-1)
    is_y_BC = torch.zeros_like(log_p_BC, dtype=torch.bool).scatter_(1, y_B1, True)

    def split(log_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of y and not y, (B, 2); of the others given not y, 0 at y."""
        rest_BC = log_BC.masked_fill(is_y_BC, -torch.inf)
        rest_B1 = rest_BC.logsumexp(-1, keepdim=True)
        return torch.cat([log_BC.gather(1, y_B1), rest_B1], -1), (log_BC - rest_B1).masked_fill(is_y_BC, 0.0)

    (p_B2, others_p_BC), (q_B2, others_q_BC) = split(log_p_BC), split(log_q_BC)
    total = loss.target * _divergence(p_B2, q_B2) + loss.others * _divergence(others_p_BC, others_q_BC)
    return _scaled(loss, total, batch)


def dist(loss: spec.DIST, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """T² · (inter · (1 − ρ of an example's probabilities) + intra · (1 − ρ of a class's, over a group's examples)).

    Means over examples and over classes; ρ is Pearson's correlation (Huang et al. 2022). One that is not defined,
    since a side is constant, counts as nothing.
    """
    log_p_BC, log_q_BC = _log_probabilities(loss, student, teacher)
    p_BC, q_BC = log_p_BC.exp(), log_q_BC.exp()
    inter = _uncorrelated(p_BC, q_BC, torch.ones_like(p_BC), -1).sum()
    p_GNC, valid_GN = grouped(p_BC, loss.group)
    q_GNC, _ = grouped(q_BC, loss.group)
    valid_GNC = valid_GN.unsqueeze(-1).expand_as(p_GNC).float()
    intra_GC = _uncorrelated(p_GNC, q_GNC, valid_GNC, 1).squeeze(1)
    intra = (intra_GC.mean(-1) * valid_GN.sum(-1)).sum()
    return _scaled(loss, loss.inter * inter + loss.intra * intra, batch)


def _uncorrelated(a: Tensor, b: Tensor, valid: Tensor, dim: int) -> Tensor:
    """1 − Pearson's ρ along ``dim`` over valid entries; 0 where either is constant."""
    count = valid.sum(dim, keepdim=True).clamp_min(1.0)
    a = (a - (a * valid).sum(dim, keepdim=True) / count) * valid
    b = (b - (b * valid).sum(dim, keepdim=True) / count) * valid
    aa, bb = a.square().sum(dim, keepdim=True), b.square().sum(dim, keepdim=True)
    defined = (aa > 1e-12) & (bb > 1e-12)
    scale = torch.where(defined, aa * bb, torch.ones_like(aa)).rsqrt()
    return torch.where(defined, 1 - (a * b).sum(dim, keepdim=True) * scale, torch.zeros_like(aa))
