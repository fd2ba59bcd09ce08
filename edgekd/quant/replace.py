"""Put fake-quantized modules in the place of a float student's: by module replacement, never by tracing its code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from brevitas.nn import QuantEmbedding, QuantLinear
from torch import nn

from edgekd.errors import TargetError
from edgekd.globs import first_match, named_in
from edgekd.quant import quantizers, weight_scales
from edgekd.quant.quantizers import act_parameters, is_static, sized


def quantize(
    model: Any,
    scheme: str,
    keep_float: Iterable[str],
    example: dict[str, torch.Tensor],
    block: int = 128,
    mixed: Mapping[str, str] = MappingProxyType({}),
    **departures: Any,
) -> Any:
    """Replace every ``nn.Linear`` and ``nn.Embedding`` of ``model`` in place, and return it.

    Linears that first read the same tensor (query, key, value) share one activation quantizer, hence one QuantizeLinear
    in the graph; ``example`` is a batch of inputs by which such sharing is found. Modules that match a ``keep_float``
    glob stay. ``block`` is the scheme's, where it has blocks; ``mixed`` gives modules another scheme or ``float`` by
    globs, of which the first that matches decides; ``departures`` are those of ``quantizers.of``. Raises
    ``TargetError`` as ``refuse`` does, if nothing is left to quantize, for a glob in ``mixed`` that decides nothing,
    and for a table whose rows cannot be stored in four bits.
    """
    patterns = tuple(keep_float)
    refuse(model, (*patterns, *(glob for glob, name in mixed.items() if name == "float")))
    chosen = _choose(model, scheme, patterns, mixed)
    shared = _shared_inputs(model, example)
    recipes = {own: quantizers.of(own, **_fitting(own, departures)) for own in {*chosen.values()} - {"float"}}
    proxies: dict[tuple[int, str], Any] = {}
    count = 0
    for name, module in list(model.named_modules()):
        own = chosen.get(name, "float")
        if own == "float":
            continue
        act, weight, table = recipes[own]
        new: Any
        if type(module) is nn.Linear:
            group = shared.get(name, -1), own
            new = QuantLinear(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                weight_quant=sized(weight, module.in_features, block),
                input_quant=proxies.get(group, act),
            )
            if group[0] >= 0:
                proxies[group] = new.input_quant
        elif type(module) is nn.Embedding:
            rows, width = module.num_embeddings, module.embedding_dim
            if width % 2 and own == "w4_block":
                raise TargetError(
                    f"the rows of {name} hold {width} numbers, and in 4 bits two share a byte: choose an even width, "
                    "or add it to keep_float"
                )
            new = QuantEmbedding(rows, width, padding_idx=module.padding_idx, weight_quant=sized(table, width, block))
        else:
            continue
        for proxy in (getattr(new, "input_quant", None), new.weight_quant):
            if proxy is not None:  # plain tensors between the layers: nobody reads the scales that would travel along
                proxy.skip_create_quant_tensor = True
        _move(module, new)
        weight_scales.start(new)
        if type(module) is nn.Embedding and name not in shared:
            new = Table(new)
        model.set_submodule(name, new)
        count += 1
    if not count:
        raise TargetError("this recipe quantizes nothing: keep_float matches every layer, or the model has no Linear")
    for proxy in act_quantizers(model).values():
        for parameter in act_parameters(proxy):
            if parameter is not None:
                parameter.requires_grad_(departures.get("learned", False))
    model.to(next(model.parameters()).device)
    return model


def _choose(model: nn.Module, scheme: str, keep_float: tuple[str, ...], mixed: Mapping[str, str]) -> dict[str, str]:
    """The scheme of every layer with a weight, but for those that ``keep_float`` names."""
    chosen: dict[str, str] = {}
    deciding: set[str | None] = set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and not named_in(name, keep_float):
            glob = first_match(name, mixed)
            deciding.add(glob)
            chosen[name] = scheme if glob is None else mixed[glob]
    if idle := [glob for glob in mixed if glob not in deciding]:
        raise TargetError(
            f"quant.mixed: {idle[0]!r} matches no layer that keep_float and the globs before it leave: correct it, or "
            "remove it"
        )
    return chosen


def _fitting(scheme: str, departures: dict[str, Any]) -> dict[str, Any]:
    """What of ``departures`` a scheme has a use for: most need ranges that are set, and blocks have their scales."""
    if scheme.endswith("_static"):
        return departures
    return {name: value for name, value in departures.items() if name == "per_channel" and scheme != "w4_block"}


class Table(nn.Module):
    """An embedding whose model reads ``weight`` itself, past any forward: DeBERTa's relative positions."""

    def __init__(self, rows: Any) -> None:
        super().__init__()
        self.rows = rows

    @property
    def weight(self) -> Any:
        """Every row, quantized."""
        return self.rows(torch.arange(self.rows.num_embeddings, device=self.rows.weight.device))

    def forward(self, ids: torch.Tensor) -> Any:
        """The rows of ``ids``, quantized."""
        return self.rows(ids)


def refuse(model: nn.Module, keep_float: Iterable[str]) -> None:
    """Raise ``TargetError`` for a layer whose weight no scheme quantizes and that ``keep_float`` does not name."""
    patterns = tuple(keep_float)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim < 2 or type(module) in (nn.Linear, nn.Embedding):
            continue
        if not named_in(name, patterns):
            raise TargetError(
                f"{name} of {type(model).__name__} is a {type(module).__name__}, which no scheme quantizes: name it in "
                "keep_float to leave it in float, or choose another architecture"
            )


def act_quantizers(model: nn.Module) -> dict[str, Any]:
    """The activation quantizers to calibrate, by the name of the first module that uses each."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, QuantLinear) or not is_static(module.input_quant):
            continue
        if id(module.input_quant) not in seen:
            seen.add(id(module.input_quant))
            found[name] = module.input_quant
    return found


def _move(old: Any, new: Any) -> None:
    device = old.weight.device
    new.to(device)
    new.weight = old.weight
    if isinstance(old, nn.Linear):
        new.bias = old.bias
    new.train(old.training)


@torch.no_grad()
def _shared_inputs(model: Any, example: dict[str, torch.Tensor]) -> dict[str, int]:
    """Module name -> group number, the same for modules that were first given one and the same tensor.

    Linears and embeddings that the model did not call are left out.
    """
    seen: list[tuple[str, torch.Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, args[0])))
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Embedding)
    ]
    try:
        model(**example)
    finally:
        for hook in hooks:
            hook.remove()
    groups: dict[int, int] = {}  # the list keeps the tensors alive, so their ids are unique
    return {name: groups.setdefault(id(tensor), len(groups)) for name, tensor in reversed(seen)}
