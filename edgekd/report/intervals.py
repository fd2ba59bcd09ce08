"""95% intervals of what a report compares besides times of one bench: proportions, and two runs' times.

Standard library and numpy only, so that a report is written and read without scipy.
"""

from __future__ import annotations

import math
import statistics as stdlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench.statistics import Ratio, student_quantile

Z95 = stdlib.NormalDist().inv_cdf(0.975)


def unpaired_ratio(base: Sequence[float], other: Sequence[float]) -> Ratio | None:
    """How many times faster ``other`` is than ``base``, from times > 0 of rounds that were not measured side by side.

    The ratio of the medians, with Welch's interval on the logarithms, widened to hold it. ``None`` if either side has
    less than two rounds. (Rounds measured side by side are paired: ``edgekd.bench.statistics.speedup``.)
    """
    if min(len(base), len(other)) < 2:
        return None
    a, b = [math.log(x) for x in base], [math.log(x) for x in other]
    value, mean = stdlib.median(a) - stdlib.median(b), stdlib.fmean(a) - stdlib.fmean(b)
    va, vb = stdlib.variance(a) / len(a), stdlib.variance(b) / len(b)
    half = 0.0
    if va + vb > 0:
        # Welch-Satterthwaite, rounded down: the wider interval
        degrees = max(1, int((va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))))
        half = student_quantile(0.975, degrees) * math.sqrt(va + vb)
    return Ratio(math.exp(value), math.exp(min(mean - half, value)), math.exp(max(mean + half, value)))


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    """How much more often ``first`` is right than ``second``, over the same N examples (two bool arrays of shape (N,)).

    ``difference`` is a share of the examples, with the adjusted Wald interval of Bonett & Price (2012), which has a
    width even when no example tells the two apart; ``p`` is McNemar's exact two-sided test on the discordant pairs.
    Raises ``ValueError`` for arrays of different or zero length.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"paired_difference: two equally long bool arrays are needed, got {first.shape}, {second.shape}"
        )
    n = int(first.size)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    a, b = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = Z95 * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    difference = (only_first - only_second) / n  # a - b is nearer to zero; the interval is widened to hold both
    return {
        "difference": difference,
        "low": max(-1.0, min(a - b - half, difference)),
        "high": min(1.0, max(a - b + half, difference)),
        "p": mcnemar(only_first, only_second),
        "only_first": only_first,
        "only_second": only_second,
        "examples": n,
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p: the chance of so uneven a split of the discordant pairs if each were a fair coin."""
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return float(min(1.0, 2 * tail / 2**n))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion ``share`` seen over ``n`` > 0 examples."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def unpaired_difference(first: float, n_first: int, second: float, n_second: int) -> tuple[float, float]:
    """Newcombe's interval (1998, method 10) of ``first - second`` for proportions over independent samples.

    Two runs over one test set are not independent; there it is wider than need be, so a mark it gives is deserved.
    """
    (l1, u1), (l2, u2) = wilson(first, n_first), wilson(second, n_second)
    low = first - second - math.hypot(first - l1, u2 - second)
    high = first - second + math.hypot(u1 - first, second - l2)
    return low, high
