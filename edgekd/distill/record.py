"""Run a model and keep what losses look at: logits, hidden states, queries, keys and values, pooled states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import globs
from edgekd.distill.signal import QKV, Signal, mask
from edgekd.distill.taps import LOGITS, Needs
from edgekd.errors import TargetError


def record(model: Any, inputs: dict[str, Tensor], needs: Needs = LOGITS) -> Signal:
    """The outputs of ``model`` on ``inputs``: what ``needs`` names, and the logits.

    Queries and keys are taken as the projections give them, before any rotation by position. Raises ``TargetError`` for
    a family whose attention has no projections known here, or that gives no states of its layers.
    """
    if not needs.tokens and not needs.pooled:
        return Signal(model(**inputs).logits)
    with _projected(model, bool(needs.attention)) as seen:
        out = model(**inputs, output_hidden_states=bool(needs.hidden) or needs.pooled)
    states: Any = getattr(out, "hidden_states", None) or ()
    layers = max(needs.hidden, default=0) + 1 if needs.hidden or needs.pooled else 0
    _refuse_fewer(model, "hidden states", len(states), layers)
    _refuse_fewer(model, "queries, keys and values", len(seen), max(needs.attention, default=0))
    hidden = {layer: states[layer] for layer in needs.hidden}
    attention = {layer: seen[layer - 1] for layer in needs.attention}
    pooled = mean(states[-1], mask(inputs, states[-1])) if needs.pooled else None
    return Signal(out.logits, hidden, attention, heads(model), pooled)


def _refuse_fewer(model: Any, what: str, given: int, asked: int) -> None:
    if given < asked:
        raise TargetError(
            f"{type(model).__name__} gives {what} of {given} layers, and {asked} are looked at: leave the losses that "
            "do out of distill.losses"
        )


def shape(model: Any) -> dict[str, int]:
    """Layers, channels and heads, as a ``Learner`` asks of a student and of a teacher."""
    config = model.config
    return {"layers": int(config.num_hidden_layers), "hidden": int(config.hidden_size), "heads": heads(model)}


def heads(model: Any) -> int:
    """How many heads the queries have."""
    return int(getattr(model.config, "num_attention_heads", 0) or 0)


def mean(states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over an example's tokens, float32; zeros where it has none."""
    weight_BT1 = mask_BT.unsqueeze(-1).float()
    states_BTH = states_BTH.float().masked_fill(weight_BT1 == 0, 0.0)
    return states_BTH.sum(1) / weight_BT1.sum(1).clamp_min(1.0)


@contextmanager
def _projected(model: nn.Module, wanted: bool) -> Iterator[list[QKV]]:
    """Within: what each block's attention projects, filled in call by call (some families share one block)."""
    seen: list[QKV] = []
    hooks = []
    found: dict[int, list[Tensor]] = {}

    def separate(key: int, place: int) -> Any:
        def hook(module: nn.Module, given: Any, out: Tensor) -> None:
            parts = found.setdefault(key, [torch.empty(0)] * 3)
            parts[place] = out
            if place == 2:
                seen.append((parts[0], parts[1], parts[2]))

        return hook

    def fused(module: nn.Module, given: Any, out: Tensor) -> None:
        q, k, v = out.chunk(3, dim=-1)
        seen.append((q, k, v))

    for names in projections(model) if wanted else ():
        modules = [model.get_submodule(name) for name in names]
        if len(modules) == 1:
            hooks.append(modules[0].register_forward_hook(fused))
        else:
            hooks.extend(m.register_forward_hook(separate(id(modules[0]), i)) for i, m in enumerate(modules))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def projections(model: nn.Module) -> list[tuple[str, ...]]:
    """The paths of the modules that make each block's queries, keys and values; one path where one makes all.

    Raises ``TargetError`` where none are known.
    """
    found = globs.projections(name for name, module in model.named_modules() if hasattr(module, "weight"))
    if not found:
        raise TargetError(
            f"{type(model).__name__} has no queries, keys and values known to edgekd: leave AttentionMaps and "
            "Relations out of distill.losses"
        )
    return found
