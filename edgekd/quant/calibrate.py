"""Set the activation ranges of a fake-quantized model from what it does on calibration examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd import spec
from edgekd.distill.data import Ints, Tokens
from edgekd.errors import DataError, TrainingError
from edgekd.progress import Progress
from edgekd.quant.observe import Histogram, choose
from edgekd.quant.quantizers import act_parameters, levels
from edgekd.quant.replace import act_quantizers

BATCH = 16


def calibrate(
    model: Any, quant: spec.Quant, tokens: Tokens, rows: Ints, progress: Progress | None = None
) -> dict[str, tuple[float, float]]:
    """Observe ``rows`` of ``tokens``, as ``calibrate_on`` does."""

    def batches() -> Iterator[dict[str, Tensor]]:
        for i in range(0, len(rows), BATCH):
            ids, valid, _ = tokens.gather(rows[i : i + BATCH])
            yield {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(valid).long()}

    return calibrate_on(model, quant, batches(), len(rows), progress)


@torch.no_grad()
def calibrate_on(
    model: Any,
    quant: spec.Quant,
    batches: Iterable[dict[str, Tensor]],
    examples: int,
    progress: Progress | None = None,
) -> dict[str, tuple[float, float]]:
    """Observe ``batches``, activations in float, weights quantized; set and return (low, high) by module.

    A batch holds the model's inputs by name, its ``examples`` (how many there are in all) in the first dimension. Where
    there is an ``attention_mask`` (batch, sequence), padding is not observed. Where no activation has a range to set,
    nothing is observed. Raises ``TrainingError`` for a range that is empty, infinite or as large as a masking constant,
    naming the tensor.
    """
    quantizers = act_quantizers(model)
    if not quantizers:
        return {}
    histograms = {name: Histogram() for name in quantizers}
    device = next(model.parameters()).device
    mask: Tensor | None = None

    def hook(name: str) -> Any:
        last: Any = None

        def observe(module: Any, args: Any) -> None:
            nonlocal last
            x = args[0]
            if x is not last:  # query, key and value share their quantizer, and are given one tensor
                seen = x[mask] if mask is not None and x.shape[:2] == mask.shape else x
                cut = getattr(module, "cut", None)
                histograms[name].observe(seen if cut is None else seen.clamp(*cut))
            last = x

        return observe

    handles = [proxy.register_forward_pre_hook(hook(name)) for name, proxy in quantizers.items()]
    training = model.training
    model.eval()
    _enable(model, False)
    try:
        with (progress or Progress(quiet=True)).bar("calibration", total=examples, unit="example") as advance:
            for batch in batches:
                given = {name: tensor.to(device) for name, tensor in batch.items()}
                mask = given["attention_mask"].bool() if "attention_mask" in given else None
                model(**given)
                advance(len(next(iter(given.values()))))
    finally:
        for handle in handles:
            handle.remove()
        _enable(model, True)
        model.train(training)
    for name, proxy in quantizers.items():
        scale, shift = act_parameters(proxy)
        low, high = choose(histograms[name], quant.method, quant.percentile, shift is None, levels(proxy))
        if not math.isfinite(high - low) or not 0 < high - low < 1e30:
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


def _enable(model: Any, enabled: bool) -> None:
    for proxy in act_quantizers(model).values():
        proxy.disable_quant = not enabled


def calibration_rows(ids: tuple[str, ...], train_ids: list[str], everything: bool = True) -> Ints:
    """The rows of the training split with these ids, in the list's order.

    An id outside the training split is a ``DataError``; with ``everything=False`` (a smoke run's cut split) only
    those present are used.
    """
    place = {name: row for row, name in enumerate(train_ids)}
    missing = [name for name in ids if name not in place]
    if missing and everything:
        raise DataError(
            f"calibration id {missing[0]!r} ({len(missing)} in all) is not in the training split: a calibration list "
            "may hold ids of the training split only, not of validation or test"
        )
    rows = [place[name] for name in ids if name in place] or list(range(min(64, len(train_ids))))
    return np.asarray(rows, np.int64)
