"""Streaming histograms of activations, and the range that each calibration method reads from one.

A histogram has a fixed number of bins; when a value falls outside, its width doubles and pairs of bins merge. So
memory does not grow with the data, and the result does not depend on how the data was batched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4096
MSE_STEPS = 100  # candidate ranges tried by the MSE method, from the full range down


class Histogram:
    """Counts of the values of one tensor, in ``BINS`` equal bins around zero, with their exact extremes."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 0.0  # bins cover [-limit, limit]
        self.low = self.high = 0.0

    def observe(self, values: Tensor) -> None:
        """Add the values of one batch (any shape; padding must be left out by the caller)."""
        values = values.detach().flatten().float()
        if not values.numel():
            return
        low, high = (float(v) for v in torch.aminmax(values))
        if not math.isfinite(high - low):
            self.low, self.high = -math.inf, math.inf
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        needed = max(abs(low), abs(high))
        if self.limit == 0.0:
            self.limit = 2.0 ** math.frexp(max(needed, 1e-30))[1]
        while needed >= self.limit:  # powers of two, whatever came first: batching cannot change the bins
            self._double()
        index = (values * (BINS / (2 * self.limit))).floor().long() + BINS // 2  # exact: a power of two
        self.counts += torch.bincount(index, minlength=BINS).cpu()

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts = torch.cat([torch.zeros(BINS // 4).double(), merged, torch.zeros(BINS // 4).double()])
        self.limit *= 2

    @property
    def centres(self) -> Tensor:
        """The middle of each bin, float64."""
        width = 2 * self.limit / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.limit

    def quantile(self, q: float) -> float:
        """The value below which a share ``q`` of what was observed lies, to within one bin."""
        total = self.counts.cumsum(0)
        index = int(torch.searchsorted(total, q * total[-1]).clamp(max=BINS - 1))
        return float(self.centres[index].clamp(self.low, self.high))


def choose(
    histogram: Histogram, method: str, percentile: float, signed: bool, levels: int = 255
) -> tuple[float, float]:
    """(low, high) for ``levels`` steps, zero inside: the extremes (``minmax``), the central ``percentile`` percent, or
    the range with the least mean squared quantization error (``mse``; Choukroun et al. 2019 choose ranges so).
    Symmetric if ``signed``; infinite if anything observed was not finite.
    """
    low, high = histogram.low, histogram.high
    if not math.isfinite(high - low):
        return low, high
    if method == "percentile":
        tail = (1 - percentile / 100) / 2
        low, high = histogram.quantile(tail), histogram.quantile(1 - tail)
    low, high = min(low, 0.0), max(high, 0.0)
    if signed:
        low, high = -max(-low, high), max(-low, high)
    return _least_error(histogram, low, high, levels) if method == "mse" else (low, high)


def _least_error(histogram: Histogram, low: float, high: float, levels: int) -> tuple[float, float]:
    shares = torch.linspace(1.0, 1 / MSE_STEPS, MSE_STEPS, dtype=torch.float64)
    used = histogram.counts > 0
    x_N, count_N = histogram.centres[used], histogram.counts[used]
    scale_S1 = (shares * (high - low) / levels).unsqueeze(1)
    zero_S1 = (-(low * shares).unsqueeze(1) / scale_S1).round()
    q_SN = ((x_N / scale_S1).round() + zero_S1).clamp(0, levels)
    error_S = (((q_SN - zero_S1) * scale_S1 - x_N).square() * count_N).sum(1)
    best = float(shares[int(error_S.argmin())])
    return low * best, high * best
