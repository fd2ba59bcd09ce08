"""How far the answers of one model, run in two ways, lie apart; and how far is too far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.report.intervals import mcnemar, wilson

Array = NDArray[Any]
CHANCE = 0.05
"""Of McNemar's test: a gap in score that chance opens so often is none."""


def apart(row: Mapping[str, float], examples: int, min_agreement: float, max_score_gap: float) -> bool:
    """Whether two ways differ by too much, and by more than so few examples may by chance.

    That is where all of Wilson's interval lies below ``min_agreement``, and for the scores by McNemar's test: two ties
    in 500 that fall the same way are no gap.
    """
    _, at_best = wilson(row["agreement"], examples)
    return at_best < min_agreement or (row["score_gap"] > max_score_gap and row["score_p"] < CHANCE)


def compare(one: Array, other: Array, labels: Array) -> dict[str, float]:
    """A row as ``parity.gate`` gives, of logits (N, C) by two ways and the labels (N,)."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = one.astype(np.float64) - other
        first, second = one.argmax(1), other.argmax(1)
        right, also = first == labels, second == labels
        return {
            "agreement": float((first == second).mean()),
            "score_gap": float(abs(right.mean() - also.mean())),
            "score_p": mcnemar(int((right & ~also).sum()), int((also & ~right).sum())),
            "max_abs": float(np.abs(difference).max()),
            "rms": float(np.sqrt(np.square(difference).mean())),
        }
