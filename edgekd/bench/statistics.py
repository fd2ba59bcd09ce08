"""What the samples say, and how sure that is. Numpy and the standard library only; everything in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
MARGIN = 0.01
"""A difference counts once it surely exceeds this share. Two copies of one file can differ by such a systematic trifle,
through where the loader and the page cache happen to put them, which more rounds would not average out (Mytkowicz et
al., "Producing wrong data without doing anything obviously wrong!", ASPLOS 2009)."""

Verdict = Literal["faster", "same", "slower", "unknown"]


@dataclass(frozen=True)
class Ratio:
    """A ratio of times with its 95% interval; ``low`` and ``high`` are ``None`` where one round alone was measured."""

    value: float
    low: float | None
    high: float | None


def speedup(baseline: Sequence[float], own: Sequence[float]) -> Ratio:
    """How many times faster ``own`` is than ``baseline``, from their p50 in the same rounds (same order, same unit).

    The value is the median of the ratios within each round: both were measured minutes apart at most, so a machine that
    slows down over the rounds slows both. The interval is Student's, on the logarithms of those ratios, widened where
    needed to hold the median. A round is a fresh process for either, hence the unit that is independent of the next
    (Georges, Buytaert and Eeckhout, "Statistically rigorous Java performance evaluation", OOPSLA 2007; Kalibera and
    Jones, "Rigorous benchmarking in reasonable time", ISMM 2013: calls in one process are not). On logarithms, since
    a ratio and its inverse must lead to the same conclusion. Not by order statistics: of five values the whole range
    covers the median with 1 - 2 / 2**5 = 93.75% only, and not by the bootstrap, which is too narrow for so few.

    Raises ``ValueError`` if the two have no, or not the same, rounds.
    """
    if len(baseline) != len(own) or len(own) == 0:
        raise ValueError(f"{len(baseline)} and {len(own)} rounds cannot be paired")
    logs = np.log(np.asarray(baseline, np.float64)) - np.log(np.asarray(own, np.float64))
    value = float(np.median(logs))
    if len(logs) < 2:
        return Ratio(math.exp(value), None, None)
    half = student_quantile(0.5 + CONFIDENCE / 2, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    low, high = min(float(logs.mean()) - half, value), max(float(logs.mean()) + half, value)
    return Ratio(math.exp(value), math.exp(low), math.exp(high))


def verdict(ratio_low: float | None, ratio_high: float | None, margin: float = MARGIN) -> Verdict:
    """What an interval of a speed-up allows to say: ``same`` means that no difference beyond ``margin`` was shown."""
    if ratio_low is None or ratio_high is None:
        return "unknown"
    if ratio_low > 1 + margin:
        return "faster"
    return "slower" if ratio_high < 1 / (1 + margin) else "same"


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile (``probability`` from 0.5 to below 1) of Student's t with a whole number of ``degrees`` of freedom.

    Bisection on the distribution's closed form for whole numbers (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    if degrees < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"no quantile at {probability} with {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if degrees == 1:
        total = 0.0
    within = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return 0.5 + within / 2


def spread(round_values: Sequence[float]) -> float:
    """The distance between the quartiles over the median: how far the rounds disagree, one wild round set aside."""
    low, middle, high = np.quantile(np.asarray(round_values, np.float64), [0.25, 0.5, 0.75])
    return float((high - low) / middle) if middle > 0 else math.inf


# ------------------------------------------------------------------------------------------------- what a model answers


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities along the last axis, in float64, for logits of any size: their maximum is taken out first."""
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


def kl(reference: NDArray[Any], logits: NDArray[Any]) -> float:
    """The mean over examples of KL(reference || model) in nats, from logits of shape (examples, classes)."""
    expected, found = log_softmax(reference), log_softmax(logits)
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


def agreement(reference: NDArray[Any], logits: NDArray[Any]) -> float:
    """The share of examples on which both name the same class first."""
    return float((np.argmax(reference, axis=-1) == np.argmax(logits, axis=-1)).mean())
