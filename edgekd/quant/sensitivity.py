"""Which layers, and which of their quantizers, make a fake-quantized model answer otherwise than it would in float.

The reference is the same model with every quantizer off and, where PTQ has rounded weights or corrected biases, those
from before (``ptq.unrounded``): else rounded weights would pass for float ones. A weight's quantizer stands for both. A
layer's output is compared with what it is in that model, not with the one before channels were equalized, which is
another by those scales, and gives the same answers. How far answers are apart is KL(float ‖ quantized) of the class
distributions, the mean over examples, in nats; it is about quadratic in the error, so that small ones vanish
beside a large one. Each layer and each quantizer is measured in two directions:

* ``won_back``: the KL of the whole quantized model, minus that with this one alone off (leave one out). It says what
  ``keep_float`` would gain, and is below 0 where errors cancel. Where two layers are broken it is small for both.
* ``alone``: the KL with this one alone on. It depends on no other layer's error, and only rounding takes it below 0:
  rows are ranked by it, so that a broken layer comes first however broken the others are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.distill import evaluate
from edgekd.distill.data import Ints, Tokens, by_length
from edgekd.errors import TargetError
from edgekd.progress import Progress
from edgekd.quant.calibrate import rows_of

PARTS = ("weight", "input", "output")
BATCH = 16
WORTH = 0.1
"""More bits are proposed for a layer where they win back at least this share of the KL."""
TRIED = 8
"""How many of the worst layers are tried."""

Layers = Mapping[str, dict[str, Any]]
"""Quantized layer -> part -> its quantizer. Layers that read the same tensor share their input's."""

Ways = Callable[[str], Sequence[tuple[str, AbstractContextManager[None]]]]
"""The schemes of more bits that a layer is tried under, the smallest first, each with what puts the layer under it."""


def measure(
    model: Any,
    tokens: Tokens,
    progress: Progress | None = None,
    floats: Mapping[str, Mapping[str, torch.Tensor]] = MappingProxyType({}),
    finer: Mapping[str, tuple[str, nn.Module]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Measure a calibrated fake-quantized classifier on ``tokens``; the model is left as it was.

    ``floats``: layer -> what it has in float (``weight``, ``bias``), where that is not what it has in ``model``.
    ``finer``: quantized layer -> a scheme of more bits, and the float layer under it.

    Returns ``kl`` of the whole; ``layers``: [{layer, sqnr_db, alone, won_back}] and ``quantizers``: [{quantizer,
    layers, alone, won_back}], worst first, the latter once for all layers that share it; ``keep_float``: [{layer,
    scheme, kl, share}], what to keep in float, each with the KL that is left once it and those before it are kept, and
    the share of the whole that it wins back; ``mixed``: the same for the layers in ``finer``, each under the scheme
    given there, or in float where that wins back enough beyond it. Raises ``TargetError`` for a model without
    quantizers.
    """
    layers = quantized_layers(model)
    for name in layers.keys() & floats.keys():
        layers[name]["weight"] = _Rounded(layers[name]["weight"], model.get_submodule(name), floats[name])
    shared = _quantizers(layers)
    if not layers:
        raise TargetError("nothing in this model is quantized, so there is nothing to diagnose")
    training = model.training
    model.eval()
    passes = 2 + 2 * (len(layers) + len(shared)) + min(TRIED, len(layers)) + 2 * min(TRIED, len(finer))
    with (progress or Progress(quiet=True)).bar("diagnose", total=passes, unit="pass") as advance:
        try:
            for proxies in layers.values():
                for proxy in proxies.values():
                    proxy.train()  # the same numbers in half the time (edgekd.quant.fused)
            _switch(layers, on=False)
            noise = sqnr(model, layers, tokens)
            reference = _logits(model, tokens)
            advance()

            def kl() -> float:
                answers = _logits(model, tokens)
                advance()
                return evaluate.compare(answers, tokens.labels, reference)["kl"]

            alone = _each(model, layers, shared, kl)
            _switch(layers, on=True)
            whole = kl()
            without = _each(model, layers, shared, kl)
            ranked = sorted(alone, key=lambda name: (-alone[name], without[name]))
            in_float = partial(_flipped, model, layers)
            kept = refine([n for n in ranked if n in layers], lambda name: [("float", in_float(name))], whole, kl)

            def ways(name: str) -> list[tuple[str, AbstractContextManager[None]]]:
                scheme, instead = finer[name]
                return [(scheme, _replaced(model.get_submodule(name), instead)), ("float", in_float(name))]

            mixed = refine([n for n in ranked if n in finer], ways, whole, kl)
        finally:
            _switch(layers, on=True)
            model.train(training)
    figures = {name: {"alone": alone[name], "won_back": whole - without[name]} for name in ranked}
    return {
        "kl": whole,
        "layers": [{"layer": n, "sqnr_db": noise[n], **row} for n, row in figures.items() if n in layers],
        "quantizers": [{"quantizer": n, "layers": shared[n][1], **row} for n, row in figures.items() if n in shared],
        "keep_float": kept,
        "mixed": mixed,
    }


def quantized_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The quantizers of every layer that has any, by layer and part."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        proxies = {part: getattr(module, f"{part}_quant", None) for part in PARTS}
        used = {part: proxy for part, proxy in proxies.items() if proxy is not None and proxy.is_quant_enabled}
        if used:
            found[name] = used
    return found


@torch.no_grad()
def sqnr(model: Any, layers: Layers, tokens: Tokens) -> dict[str, float | None]:
    """The signal-to-quantization-noise ratio of each layer's output, in dB; ``None`` where nothing changes.

    10 log10 of the power of the float layer's output over that of the quantized one's error, both given what the layer
    is given in float, summed over ``tokens`` without padding. The model's quantizers must be off.
    """
    powers = {name: [0.0, 0.0] for name in layers}
    mask = torch.empty(0)

    def hook(name: str) -> Any:
        def compare(module: Any, args: Any, kwargs: Any, exact: torch.Tensor) -> None:
            _flip(layers[name].values())
            found = module.forward(*args, **kwargs)  # the module itself would call this hook again
            _flip(layers[name].values())
            pair = [rows_of(x.double(), mask) for x in (exact, found)]
            powers[name][0] += float(pair[0].square().sum())
            powers[name][1] += float((pair[1] - pair[0]).square().sum())

        return compare

    handles = [model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in layers]
    try:
        for _, inputs in _batches(model, tokens):
            mask = inputs["attention_mask"].bool()
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {n: 10 * math.log10(signal / error) if signal and error else None for n, (signal, error) in powers.items()}


@torch.no_grad()
def _logits(model: Any, tokens: Tokens) -> NDArray[np.float32]:
    """(N, C). Unlike ``evaluate.logits``, it leaves every module in the mode that it is in."""
    found: dict[int, NDArray[np.float32]] = {}
    for rows, inputs in _batches(model, tokens):
        found |= dict(zip(rows.tolist(), model(**inputs).logits.float().cpu().numpy(), strict=True))
    return np.stack([found[row] for row in range(len(tokens))])


def _batches(model: Any, tokens: Tokens) -> Iterator[tuple[Ints, dict[str, torch.Tensor]]]:
    device = next(model.parameters()).device
    for rows in by_length(tokens, BATCH):
        ids, valid, _ = tokens.gather(rows)
        mask = torch.from_numpy(valid).long()
        yield rows, {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": mask.to(device)}


def _quantizers(layers: Layers) -> dict[str, tuple[Any, list[str]]]:
    """Each quantizer under the name of the first layer that has it, with all of those."""
    found: dict[int, tuple[str, Any, list[str]]] = {}
    for name, proxies in layers.items():
        for part, proxy in proxies.items():
            found.setdefault(id(proxy), (f"{name}.{part}", proxy, []))[2].append(name)
    return {name: (proxy, users) for name, proxy, users in found.values()}


def _each(model: Any, layers: Layers, shared: Mapping[str, tuple[Any, list[str]]], kl: Any) -> dict[str, float]:
    """The KL with each layer, then each quantizer, switched the other way."""
    found = {}
    for name in layers:
        with _flipped(model, layers, name):
            found[name] = kl()
    for name, (proxy, _) in shared.items():
        _flip([proxy])
        found[name] = kl()
        _flip([proxy])
    return found


def refine(ranked: list[str], ways: Ways, whole: float, kl: Callable[[], float]) -> list[dict[str, Any]]:
    """Give one layer after the other more bits, worst first: every step up must win back enough of ``whole``.

    Returns the rows of ``keep_float`` and ``mixed`` (see ``measure``); ``kl()`` is that of the model as it is now.
    """
    found, before = [], whole
    with ExitStack() as kept:
        for name in ranked[:TRIED]:
            left, chosen = before, None
            for place, (scheme, put) in enumerate(ways(name)):
                with put:
                    after = kl()
                if left - after >= WORTH * whole > 0:
                    left, chosen = after, (place, scheme)
            if chosen is not None:
                kept.enter_context(ways(name)[chosen[0]][1])
                found.append({"layer": name, "scheme": chosen[1], "kl": left, "share": (before - left) / whole})
                before = left
    return found


class _Rounded:
    """The quantizer of a weight that was rounded to stay: off, its layer has its weight and bias from before."""

    def __init__(self, proxy: Any, layer: Any, before: Mapping[str, torch.Tensor]) -> None:
        self.proxy, self.layer, self.other = proxy, layer, dict(before)

    @property
    def disable_quant(self) -> bool:
        return bool(self.proxy.disable_quant)

    @disable_quant.setter
    def disable_quant(self, off: bool) -> None:
        if off != self.proxy.disable_quant:
            for name, tensor in self.other.items():
                parameter = getattr(self.layer, name)
                self.other[name], parameter.data = parameter.data, tensor
            self.proxy.disable_quant = off

    def train(self) -> None:
        self.proxy.train()


def _switch(layers: Layers, on: bool) -> None:
    for proxies in layers.values():
        for proxy in proxies.values():
            proxy.disable_quant = not on


def _flip(proxies: Iterable[Any]) -> None:
    for proxy in proxies:
        proxy.disable_quant = not proxy.disable_quant


@contextmanager
def _flipped(model: Any, layers: Layers, name: str) -> Iterator[None]:
    """Switch a layer's quantizers the other way while it computes: other layers may share them, and go on as before."""
    module, proxies = model.get_submodule(name), list(layers[name].values())
    handles = (
        module.register_forward_pre_hook(lambda *_: _flip(proxies)),
        module.register_forward_hook(lambda *_: _flip(proxies), always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced(module: nn.Module, instead: nn.Module) -> Iterator[None]:
    """Let another layer compute in the place of ``module``."""
    handle = module.register_forward_hook(lambda _, args, output: instead(*args))
    try:
        yield
    finally:
        handle.remove()
