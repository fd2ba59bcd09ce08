"""The best plain post-training quantization of a student, found by trying: what training under it has to beat."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from edgekd import spec
from edgekd.errors import TrainingError
from edgekd.progress import Progress
from edgekd.quant import ptq
from edgekd.quant.calibrate import Batch, observe, set_ranges
from edgekd.quant.moments import moments
from edgekd.quant.observe import METHODS
from edgekd.quant.rounding import learn_rounding


def search(
    model: Any,
    quant: spec.Quant,
    batches: Sequence[Batch],
    example: Batch,
    judge: Callable[[], dict[str, float]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Leave ``model``, prepared, as the try with the least ``judge()["kl"]``, and return all tries, in their order.

    Every way to choose ranges is tried, where the scheme has them; then equalization, rounding (by GPTQ and learned;
    the better counts) and bias correction, one after the other, each kept if it helps. ``batches`` are what is
    calibrated on; ``example`` is any batch.
    A try is ``{"name", "ranges", "techniques", "best", "seconds"}`` with what ``judge`` said. Raises ``TrainingError``
    as ``set_ranges`` does for the target's own method, and where no ranges give finite answers; another try that
    fails is left out.
    """
    tries: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    state = _copy(model)
    histograms = observe(model, batches, progress)

    def attempt(
        method: str | None, techniques: tuple[str, ...], change: Callable[[], object], start: dict[str, Tensor]
    ) -> bool:
        """Try ``change`` on the model as it was at ``start``; whether it became the best."""
        nonlocal best, state
        began = time.monotonic()
        name = " + ".join([f"{method} ranges" if method else "rounding to nearest", *techniques])
        model.load_state_dict(start)
        try:
            change()
        except TrainingError as error:
            if method == quant.method and not techniques:
                raise
            progress.log(f"quantize: {name} left out: {error}")
            return False
        judged = judge()
        found = {"name": name, "ranges": method, "techniques": techniques, **judged}
        if not math.isfinite(judged["kl"]):
            progress.log(f"quantize: {name} left out: its answers are not finite")
            return False
        tries.append(found | {"seconds": round(time.monotonic() - began, 2)})
        better = not best or found["kl"] < best["kl"]
        if better:
            best, state = found, _copy(model)
        return better

    if not histograms:
        attempt(None, (), lambda: None, state)
    for method in METHODS if histograms else ():
        attempt(method, (), partial(set_ranges, model, histograms, method, quant.percentile), state)

    if not best:
        raise TrainingError("no way to choose ranges gives finite answers on validation: look at the student's own")

    def technique(changes: dict[str, Callable[[], object]]) -> bool:
        """Try each of ``changes`` on the best model so far; whether one became the best."""
        start, ranges, before = state, best["ranges"], best["techniques"]

        def changed(change: Callable[[], object]) -> None:
            change()
            if ranges:
                set_ranges(model, observe(model, batches, progress), ranges, quant.percentile)

        done = [attempt(ranges, (*before, name), partial(changed, how), start) for name, how in changes.items()]
        return any(done)

    model.load_state_dict(state)
    pairs, weights, inputs = ptq.pairs(model, example), ptq.float_weights(model), moments(model, batches, progress)
    if pairs and technique({"equalization": lambda: ptq.equalize(model, inputs, pairs)}):
        weights, inputs = ptq.float_weights(model), moments(model, batches, progress)
    roundings = {"GPTQ": ptq.gptq, "learned rounding": learn_rounding}
    if technique({name: partial(how, model, inputs) for name, how in roundings.items()}):
        model.load_state_dict(state)
        inputs = moments(model, batches, progress)

    def correct() -> None:
        ptq.correct_bias(model, inputs, weights)
        ptq.correct_convolutions(model, batches)

    technique({"bias correction": correct})
    model.load_state_dict(state)
    return [found | {"best": found["name"] == best["name"]} for found in tries]


def _copy(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
