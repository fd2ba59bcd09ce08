"""Losses on what examples are to each other, by the mean of each one's last hidden states. Widths need not be equal.

What is read of both: means of the last hidden states (B, H).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd import spec
from edgekd.distill.losses.groups import grouped
from edgekd.distill.signal import Batch, Signal


def _pooled(student: Signal, teacher: Signal, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's examples in groups, (G, N, H) each in its own width, and which are examples, (G, N)."""
    assert student.pooled_BH is not None and teacher.pooled_BH is not None
    s_GNH, valid_GN = grouped(student.pooled_BH.float(), size)
    return s_GNH, grouped(teacher.pooled_BH.detach().float(), size)[0], valid_GN


def _mean(found: Tensor, counted: Tensor) -> Tensor:
    """The mean of each group's counted entries, (G,); 0 where a group has none."""
    dims = tuple(range(1, found.ndim))
    return found.masked_fill(~counted, 0.0).sum(dims) / counted.sum(dims).clamp_min(1)


def _over_groups(found_G: Tensor, valid_GN: Tensor, batch: Batch) -> Tensor:
    """The mean of the groups' losses, each counting as many times as it has examples."""
    return (found_G * valid_GN.sum(1)).sum() / batch.total_examples


def _of_matrices(matrix: Callable[[Tensor], Tensor], pooled: tuple[Tensor, Tensor, Tensor], batch: Batch) -> Tensor:
    """The mean squared difference of what ``matrix`` makes of student's and teacher's groups, (G, N, N)."""
    s_GNH, t_GNH, valid_GN = pooled
    found_GNN = (matrix(s_GNH) - matrix(t_GNH)).square()
    return _over_groups(_mean(found_GNN, valid_GN[:, :, None] & valid_GN[:, None, :]), valid_GN, batch)


def rkd(loss: spec.RKD, student: Signal, teacher: Signal, batch: Batch, own: Any = None) -> Tensor:
    """distance · mean over pairs of Huber(d(student) − d(teacher)) + angle · mean over triples of the same of cosines.

    d is the Euclidean distance over its mean in the group; the cosine is that of the angle at the middle one of three
    different examples (Park et al. 2019).
    """
    s_GNH, t_GNH, valid_GN = _pooled(student, teacher, loss.group)
    different_NN = ~torch.eye(loss.group, dtype=torch.bool, device=s_GNH.device)
    pairs_GNN = valid_GN[:, :, None] & valid_GN[:, None, :] & different_NN
    triples_GNNN = pairs_GNN[:, :, :, None] & pairs_GNN[:, None, :, :] & different_NN[None, :, None, :]

    def geometry(x_GNH: Tensor) -> tuple[Tensor, Tensor]:
        """Distances over their mean, (G, N, N), and cosines of the angle i-j-k at j, (G, i, j, k)."""
        apart_GNNH = x_GNH[:, :, None] - x_GNH[:, None, :]
        squared_GNN = apart_GNNH.square().sum(-1)
        near = squared_GNN < 1e-12  # the root has no slope at 0
        safe_GNN = squared_GNN.masked_fill(near, 1.0).sqrt()
        distance_GNN = safe_GNN.masked_fill(near, 0.0)
        unit_GNNH = apart_GNNH / safe_GNN[..., None]
        cosine_GNNN = torch.einsum("gijh,gkjh->gijk", unit_GNNH, unit_GNNH)
        return distance_GNN / _mean(distance_GNN, pairs_GNN).clamp_min(1e-6)[:, None, None], cosine_GNNN

    (s_distance, s_cosine), (t_distance, t_cosine) = geometry(s_GNH), geometry(t_GNH)
    distance_G = _mean(F.smooth_l1_loss(s_distance, t_distance, reduction="none"), pairs_GNN)
    angle_G = _mean(F.smooth_l1_loss(s_cosine, t_cosine, reduction="none"), triples_GNNN)
    return _over_groups(loss.distance * distance_G + loss.angle * angle_G, valid_GN, batch)


def similarity_preserving(
    loss: spec.SimilarityPreserving, student: Signal, teacher: Signal, batch: Batch, own: Any = None
) -> Tensor:
    """1 / n² · ‖G(student) − G(teacher)‖² with G = F Fᵀ, each row of length 1 (Tung and Mori 2019)."""

    def similarity(x_GNH: Tensor) -> Tensor:
        return F.normalize(x_GNH @ x_GNH.transpose(1, 2), dim=-1)

    return _of_matrices(similarity, _pooled(student, teacher, loss.group), batch)


def correlation_congruence(
    loss: spec.CorrelationCongruence, student: Signal, teacher: Signal, batch: Batch, own: Any = None
) -> Tensor:
    """1 / n² · ‖K(student) − K(teacher)‖² with K the Gaussian kernel exp(−γ ‖x − y‖²) of examples of length 1.

    Its Taylor series is exp(−2γ) Σ (2γ)ᵖ / p! (x · y)ᵖ, p up to ``order`` (Peng et al. 2019).
    """

    def kernel(x_GNH: Tensor) -> Tensor:
        unit_GNH = F.normalize(x_GNH, dim=-1)
        product_GNN = unit_GNH @ unit_GNH.transpose(1, 2)
        terms = [(2 * loss.gamma) ** p / math.factorial(p) * product_GNN**p for p in range(loss.order + 1)]
        return math.exp(-2 * loss.gamma) * torch.stack(terms).sum(0)

    return _of_matrices(kernel, _pooled(student, teacher, loss.group), batch)
