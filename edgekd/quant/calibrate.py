"""Set the activation ranges of a fake-quantized model from what it does on calibration examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from edgekd import spec
from edgekd.distill.data import Ints, Tokens
from edgekd.errors import DataError, TrainingError
from edgekd.progress import Progress
from edgekd.quant.observe import Histogram, choose
from edgekd.quant.quantizers import act_parameters, levels
from edgekd.quant.replace import act_quantizers

BATCH = 16
UNLISTED = 256  # examples where no list is given: no range needs them, but GPTQ and bias correction do


def calibrate(
    model: Any, quant: spec.Quant, tokens: Tokens, rows: Ints, progress: Progress | None = None
) -> dict[str, tuple[float, float]]:
    """Observe ``rows`` of ``tokens``, set and return (low, high) by module: ``observe``, then ``set_ranges``."""
    return set_ranges(model, observe(model, tokens, rows, progress), quant.method, quant.percentile)


@torch.no_grad()
def observe(model: Any, tokens: Tokens, rows: Ints, progress: Progress | None = None) -> dict[str, Histogram]:
    """What each activation quantizer is given over ``rows`` of ``tokens``, activations in float, weights quantized.

    Where no activation has a range to set, nothing is observed.
    """
    quantizers = act_quantizers(model)
    if not quantizers:
        return {}
    histograms = {name: Histogram() for name in quantizers}
    _enable(model, False)
    try:
        watch(model, quantizers, tokens, rows, lambda name, x, _: histograms[name].observe(x), progress)
    finally:
        _enable(model, True)
    return histograms


@torch.no_grad()
def watch(
    model: Any,
    modules: Mapping[str, torch.nn.Module],
    tokens: Tokens,
    rows: Ints,
    see: Callable[[str, torch.Tensor, torch.Tensor], None],
    progress: Progress | None = None,
) -> None:
    """Run ``rows`` of ``tokens``; ``see`` gets each module's name, input and output, (N, C) without padding.

    A tensor that a module is given twice in a row is seen once: query, key and value share their quantizer.
    """
    device = next(model.parameters()).device
    mask = torch.empty(0)

    def rows_of(x: torch.Tensor) -> torch.Tensor:
        return x[mask] if x.ndim == 3 and x.shape[:2] == mask.shape else x.reshape(-1, x.shape[-1])

    def hook(name: str) -> Any:
        last: Any = None

        def seen(module: Any, args: Any, output: Any) -> None:
            nonlocal last
            if args[0] is not last:
                see(name, rows_of(args[0]), rows_of(output))
            last = args[0]

        return seen

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    training = model.training
    model.eval()
    try:
        with (progress or Progress(quiet=True)).bar("calibration", total=len(rows), unit="example") as advance:
            for i in range(0, len(rows), BATCH):
                ids, valid, _ = tokens.gather(rows[i : i + BATCH])
                mask = torch.from_numpy(valid).to(device)
                model(input_ids=torch.from_numpy(ids).to(device), attention_mask=mask.long())
                advance(len(ids))
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)


@torch.no_grad()
def set_ranges(
    model: Any, histograms: dict[str, Histogram], method: str, percentile: float
) -> dict[str, tuple[float, float]]:
    """Set each quantizer's range as ``method`` chooses it; return (low, high) by module.

    Raises ``TrainingError`` for a range that is empty, infinite or as large as a masking constant, naming the tensor.
    """
    for name, proxy in act_quantizers(model).items():
        scale, shift = act_parameters(proxy)
        low, high = choose(histograms[name], method, percentile, shift is None, levels(proxy))
        if not math.isfinite(high - low) or not 0 < high - low < 1e30:
            raise TrainingError(
                f"the input of {name} has the range [{low}, {high}]: it cannot be quantized; add it to keep_float"
            )
        scale.fill_(high - low if shift is not None else high)
        if shift is not None:
            shift.fill_(-low)
    return ranges(model)


def ranges(model: Any) -> dict[str, tuple[float, float]]:
    """The (low, high) that each activation quantizer covers now, by the module that reads it first."""
    found: dict[str, tuple[float, float]] = {}
    for name, proxy in act_quantizers(model).items():
        scale, shift = (None if p is None else float(p.detach()) for p in act_parameters(proxy))
        assert scale is not None
        found[name] = (-scale, scale) if shift is None else (-shift, scale - shift)
    return found


def _enable(model: Any, enabled: bool) -> None:
    for proxy in act_quantizers(model).values():
        proxy.disable_quant = not enabled


def calibration_rows(ids: tuple[str, ...], train_ids: list[str], everything: bool = True) -> Ints:
    """The rows of the training split with these ids, in the list's order.

    An id outside the training split is a ``DataError``; with ``everything=False`` (a smoke run's cut split) only
    those present are used. Without any, rows spread evenly over the split.
    """
    place = {name: row for row, name in enumerate(train_ids)}
    missing = [name for name in ids if name not in place]
    if missing and everything:
        raise DataError(
            f"calibration id {missing[0]!r} ({len(missing)} in all) is not in the training split: a calibration list "
            "may hold ids of the training split only, not of validation or test"
        )
    rows = [place[name] for name in ids if name in place]
    spread = np.linspace(0, len(train_ids) - 1, min(UNLISTED, len(train_ids)))
    return np.asarray(rows if rows else spread, np.int64)
