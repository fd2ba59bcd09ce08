"""Set the activation ranges of a fake-quantized model from what it does on calibration examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd import spec
from edgekd.distill.data import Ints, Tokens, model_inputs
from edgekd.errors import DataError, TrainingError
from edgekd.progress import Progress
from edgekd.quant.observe import Histogram, choose, usable
from edgekd.quant.quantizers import act_parameters, levels
from edgekd.quant.replace import act_quantizers

Batch = dict[str, Tensor]
"""A model's inputs by name, examples in the first dimension."""
BATCH = 16
UNLISTED = 256  # examples where no list is given: no range needs them, but GPTQ and bias correction do


def calibrate(
    model: Any, quant: spec.Quant, tokens: Tokens, rows: Ints, progress: Progress | None = None
) -> dict[str, tuple[float, float]]:
    """Observe ``rows`` of ``tokens``, as ``calibrate_on`` does."""
    return calibrate_on(model, quant, batches(tokens, rows), progress)


def calibrate_on(
    model: Any, quant: spec.Quant, batches: Sequence[Batch], progress: Progress | None = None
) -> dict[str, tuple[float, float]]:
    """Observe ``batches``, set and return (low, high) by module: ``observe``, then ``set_ranges``."""
    return set_ranges(model, observe(model, batches, progress), quant.method, quant.percentile)


def batches(tokens: Tokens, rows: Ints) -> list[Batch]:
    """``rows`` of ``tokens`` as inputs of a text model."""
    parts = [tokens.gather(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    return [model_inputs(ids, mask) for ids, mask, _ in parts]


@torch.no_grad()
def observe(model: Any, batches: Sequence[Batch], progress: Progress | None = None) -> dict[str, Histogram]:
    """What each activation quantizer is given, activations in float, weights quantized.

    Where no activation has a range to set, nothing is observed.
    """
    quantizers = act_quantizers(model)
    if not quantizers:
        return {}
    histograms = {name: Histogram() for name in quantizers}

    def add(name: str, x: Tensor, _: Tensor) -> None:
        cut = getattr(quantizers[name], "cut", None)
        histograms[name].observe(x if cut is None else x.clamp(*cut))

    enable_activations(model, False)
    try:
        watch(model, quantizers, batches, add, progress)
    finally:
        enable_activations(model, True)
    return histograms


@torch.no_grad()
def watch(
    model: Any,
    modules: Mapping[str, torch.nn.Module],
    batches: Sequence[Batch],
    see: Callable[[str, Tensor, Tensor], None],
    progress: Progress | None = None,
) -> None:
    """Run ``batches``; ``see`` gets each module's name, input and output, as rows of the last dimension.

    Rows that an ``attention_mask`` (batch, sequence) calls padding are left out. A tensor that a module is given twice
    in a row is seen once: query, key and value share their quantizer.
    """
    device = next(model.parameters()).device
    mask: Tensor | None = None

    def hook(name: str) -> Any:
        last: Any = None

        def seen(module: Any, args: Any, output: Any) -> None:
            nonlocal last
            if args[0] is not last:
                see(name, rows_of(args[0], mask), rows_of(output, mask))
            last = args[0]

        return seen

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    training = model.training
    model.eval()
    total = sum(_examples(batch) for batch in batches)
    try:
        with (progress or Progress(quiet=True)).bar("calibration", total=total, unit="example") as advance:
            for batch in batches:
                given = {name: tensor.to(device) for name, tensor in batch.items()}
                mask = given["attention_mask"].bool() if "attention_mask" in given else None
                model(**given)
                advance(_examples(batch))
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)


def rows_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` as rows of its last dimension, without those that ``mask`` (batch, sequence) calls padding, if any.

    Only a (batch, sequence, channels) tensor has such: one (batch, channels) may have the mask's shape by chance.
    """
    return x[mask] if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape else x.reshape(-1, x.shape[-1])


def _examples(batch: Batch) -> int:
    return len(next(iter(batch.values())))


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
        if not usable(low, high):
            layer = name.removesuffix(".output_quant")
            raise TrainingError(
                f"the {'input' if layer == name else 'output'} of {layer} has the range [{low}, {high}]: it cannot be "
                "quantized; add it to keep_float"
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


def enable_activations(model: Any, enabled: bool) -> None:
    """Quantize activations that have a static range, or leave them in float."""
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
