"""Which examples a student is taught on, where it is not all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd import spec
from edgekd.distill.data import Ints
from edgekd.distill.labels import LabelStore
from edgekd.distill.several import Together


def rows(select: spec.Select, store: LabelStore | Together, student: Callable[[], NDArray[Any]], seed: int) -> Ints:
    """The chosen rows, ascending: ``select.share`` of the store's examples, one at least.

    ``student()`` gives the student's logits (N, C) and is called for ``gap`` alone. Ties: the earlier row.
    """
    logits_NC = store.all_logits()
    count = max(1, round(select.share * len(logits_NC)))
    if select.method == "random":
        chosen = np.random.default_rng([seed, len(logits_NC)]).permutation(len(logits_NC))[:count]
    elif select.method == "diversity":
        chosen = k_center(torch.from_numpy(np.array(store.fields["pooled"])), count).numpy()
    else:
        score_N = _SCORES[select.method](logits_NC, torch.from_numpy(student()) if select.method == "gap" else None)
        chosen = highest(score_N.numpy(), logits_NC.argmax(-1).numpy(), count)
    return np.sort(chosen).astype(np.int64)


def highest(score_N: NDArray[Any], class_N: Ints, count: int) -> Ints:
    """``count`` rows of the highest scores, in every class the same share of its rows.

    The hardest of all are of few classes, and who is taught on these alone forgets the others (benchmarks/LOG.md).
    """
    order_N = np.lexsort((-score_N, class_N))  # by class, the highest first
    sizes = np.bincount(class_N)
    firsts = np.cumsum(sizes) - sizes
    place_N = (np.arange(len(order_N)) - firsts[class_N[order_N]] + 0.5) / sizes[class_N[order_N]]
    return order_N[np.argsort(place_N, kind="stable")[:count]]


def _entropy(teacher_NC: Tensor, student_NC: Tensor | None) -> Tensor:
    """Of the teacher's probabilities, in nats: where it is least sure (uncertainty sampling, Lewis and Gale 1994)."""
    log_p_NC = teacher_NC.double().log_softmax(-1)
    return -(log_p_NC.exp() * log_p_NC).sum(-1)


def _margin(teacher_NC: Tensor, student_NC: Tensor | None) -> Tensor:
    """Minus the distance of the teacher's two largest probabilities (Scheffer et al. 2001)."""
    best_N2 = teacher_NC.double().softmax(-1).topk(2, dim=-1).values
    return best_N2[:, 1] - best_N2[:, 0]


def _gap(teacher_NC: Tensor, student_NC: Tensor | None) -> Tensor:
    """KL from teacher to student as it is now: what the student has still to learn of it."""
    assert student_NC is not None
    log_p_NC, log_q_NC = teacher_NC.double().log_softmax(-1), student_NC.double().log_softmax(-1)
    return F.kl_div(log_q_NC, log_p_NC, log_target=True, reduction="none").sum(-1)


_SCORES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"entropy": _entropy, "margin": _margin, "gap": _gap}


def k_center(points_NH: Tensor, count: int) -> Tensor:
    """``count`` rows that leave no point far from all of them: greedily the farthest next (Sener and Savarese 2018).

    The first is the point nearest to the mean. Not farther than twice the best possible (Gonzalez 1985).
    """
    points_NH = points_NH.double()
    chosen = [int((points_NH - points_NH.mean(0)).square().sum(1).argmin())]
    distance_N = (points_NH - points_NH[chosen[0]]).square().sum(1)
    for _ in range(count - 1):  # each depends on the one before; vectorised over the points
        farthest = int(distance_N.argmax())
        chosen.append(farthest)
        distance_N = torch.minimum(distance_N, (points_NH - points_NH[farthest]).square().sum(1))
    return torch.tensor(chosen)
