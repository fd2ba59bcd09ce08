"""Streaming histograms of activations, and the range that each calibration method reads from one.

A histogram has a fixed number of bins; when a value falls outside, its width doubles and pairs of bins merge. So
memory does not grow with the data, and the result does not depend on how the data was batched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4096
CANDIDATES = 100  # ranges tried by the MSE and entropy methods, from the full range down
METHODS = ("minmax", "percentile", "mse", "entropy")


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
    """(low, high) for ``levels`` steps, zero inside: the extremes (``minmax``), the central ``percentile`` percent, the
    range with the least mean squared quantization error (``mse``; Choukroun et al. 2019 choose ranges so), or the one
    whose quantized distribution tells most of the values' own (``entropy``; Migacz 2017: the least KL divergence).
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
    if method not in ("mse", "entropy") or low == high:
        return low, high
    criterion = _squared_error if method == "mse" else _divergence
    used = histogram.counts > 0
    x_N, count_N = histogram.centres[used], histogram.counts[used]
    shares = [i / CANDIDATES for i in range(CANDIDATES, 0, -1)]
    if method == "entropy":  # fewer bins than integers are told without a loss, whatever the range leaves out
        least = (levels + 1) * 2 * histogram.limit / BINS
        shares = [s for s in shares if s == 1 or s * (high - low) >= least]
    best = min(shares, key=lambda share: criterion(x_N, count_N, low * share, high * share, levels))
    return low * best, high * best


def usable(low: float, high: float) -> bool:
    """Whether a range can be quantized: not empty, not infinite, nor as large as a masking constant."""
    return math.isfinite(high - low) and 0 < high - low < 1e30


def _integers(x_N: Tensor, low: float, high: float, levels: int) -> tuple[Tensor, float, int]:
    """What stands for values, 0..``levels`` (float64), with the scale and the integer for 0."""
    scale = (high - low) / levels
    zero = round(-low / scale)
    return ((x_N / scale).round() + zero).clamp(0, levels), scale, zero


def _squared_error(x_N: Tensor, count_N: Tensor, low: float, high: float, levels: int) -> float:
    q_N, scale, zero = _integers(x_N, low, high, levels)
    return float((((q_N - zero) * scale - x_N).square() * count_N).sum())


def _divergence(x_N: Tensor, count_N: Tensor, low: float, high: float, levels: int) -> float:
    """KL from the values, clipped to the range, to what the integers tell of those inside it; infinite if none is.

    What is clipped counts in the outermost bins inside, but the integers do not know of it; the values of one integer
    are told as spread evenly over those of its bins that hold any.
    """
    inside_N = (x_N >= low) & (x_N <= high)
    if not inside_N.any():
        return math.inf
    p_M, known_M = count_N[inside_N].clone(), count_N[inside_N]
    p_M[0] += count_N[x_N < low].sum()
    p_M[-1] += count_N[x_N > high].sum()
    q_M = _integers(x_N[inside_N], low, high, levels)[0].long()
    total_L = torch.zeros(levels + 1, dtype=torch.float64).index_add_(0, q_M, known_M)
    told_M = (total_L / torch.bincount(q_M, minlength=levels + 1).clamp(min=1))[q_M]
    p_M, told_M = p_M / p_M.sum(), told_M / told_M.sum()
    return float((p_M * (p_M / told_M).log()).sum())
