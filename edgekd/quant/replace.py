"""Put fake-quantized modules in the place of a float student's: by module replacement, never by tracing its code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from brevitas.nn import QuantConv2d, QuantEmbedding, QuantLinear
from torch import nn

from edgekd import globs
from edgekd.errors import TargetError
from edgekd.quant import quantizers, weight_scales
from edgekd.quant.flow import watch
from edgekd.quant.fold import fold_batch_norms
from edgekd.quant.lookup import Lookup
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
    """Replace every ``nn.Linear``, ``nn.Embedding`` and ``nn.Conv2d`` of ``model`` in place, and return it.

    Layers that first read the same tensor (query, key, value) share one activation quantizer, hence one QuantizeLinear
    in the graph; ``example`` is a batch of inputs by which such sharing is found. Batch norms are folded into the
    convolutions before them. A convolution's output is quantized too, unless inputs of quantized layers are all that it
    becomes: runtimes have integer convolutions only from integers to integers. Modules that match a ``keep_float`` glob
    stay. ``block`` is the scheme's, where it has blocks; ``mixed`` gives modules another scheme or ``float`` by globs,
    of which the first that matches decides; ``departures`` are those of ``quantizers.of``. Raises ``TargetError`` as
    ``schemes`` does, and for a table whose rows cannot be stored in four bits.
    """
    chosen = schemes(model, scheme, tuple(keep_float), mixed)
    fold_batch_norms(model, example)
    flow = watch(model, example)
    shared = flow.given
    layers = (nn.Linear, nn.Conv2d)
    static = {n for n, own in chosen.items() if own.endswith("_static") and type(model.get_submodule(n)) in layers}
    recipes = {own: quantizers.of(own, **_fitting(own, departures)) for own in {*chosen.values()} - {"float"}}
    proxies: dict[tuple[int, str], Any] = {}
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
            if group in proxies:
                quantizers.share(new.input_quant)
            elif group[0] >= 0:
                proxies[group] = new.input_quant
        elif type(module) is nn.Conv2d:
            group = shared.get(name, -1), own
            new = QuantConv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                module.groups,
                bias=module.bias is not None,
                weight_quant=weight,
                input_quant=proxies.get(group, act),
                output_quant=None if flow.requantized(name, static) else act,
            )
            quantizers.at_output(new.output_quant, flow.cut(name))
            if group in proxies:
                quantizers.share(new.input_quant)
            elif group[0] >= 0:
                proxies[group] = new.input_quant
        elif type(module) is nn.Embedding:
            rows, width = module.num_embeddings, module.embedding_dim
            kind = QuantEmbedding if own == "w4_block" else Lookup
            new = kind(rows, width, padding_idx=module.padding_idx, weight_quant=sized(table, width, block))
        else:
            continue
        for proxy in (getattr(new, "input_quant", None), new.weight_quant, getattr(new, "output_quant", None)):
            if proxy is not None:  # plain tensors between the layers: nobody reads the scales that would travel along
                proxy.skip_create_quant_tensor = True
        _move(module, new)
        weight_scales.start(new)
        if type(module) is nn.Embedding and name not in shared:
            new = Table(new)
        model.set_submodule(name, new)
    for proxy in act_quantizers(model).values():
        for parameter in act_parameters(proxy):
            if parameter is not None:
                parameter.requires_grad_(departures.get("learned", False))
    model.to(next(model.parameters()).device)
    return model


def schemes(
    model: nn.Module, scheme: str, keep_float: tuple[str, ...], mixed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The scheme of every layer with a weight, or ``float``, but for those that ``keep_float`` names.

    Raises ``TargetError`` for a layer that its scheme does not quantize, and as ``globs.check`` does. Convolutions need
    a static scheme, and zeros as padding: onnxruntime cannot read their weights in 4 bits, and its ``ConvInteger``, for
    ranges found at run time, takes several times as long as its float ``Conv`` (``benchmarks/convolutions.py``).
    """
    chosen: dict[str, str] = {}
    for name, module in model.named_modules():
        if not _has_weight(module) or globs.named_in(name, keep_float):
            continue
        glob = globs.first_match(name, mixed)
        own = chosen[name] = scheme if glob is None else mixed[glob]
        if type(module) is nn.Embedding and module.embedding_dim % 2 and own == "w4_block":
            raise TargetError(globs.odd_rows(name, module.embedding_dim))
        convolution = type(module) is nn.Conv2d and module.padding_mode == "zeros"
        if own == "float" or type(module) in (nn.Linear, nn.Embedding) or (convolution and own.endswith("_static")):
            continue
        why = f"{own} does not quantize: choose a static scheme," if convolution else "no scheme quantizes:"
        raise TargetError(
            f"{name} of {type(model).__name__} is a {type(module).__name__}, which {why} name it in keep_float to "
            "leave it in float, or choose another architecture"
        )
    modules = dict(model.named_modules())
    globs.check(keep_float, mixed, [n for n, m in modules.items() if _has_weight(m)], filter(None, modules))
    return chosen


def _has_weight(module: nn.Module) -> bool:
    if isinstance(module, nn.RNNBase):
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim > 1


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


def act_quantizers(model: nn.Module) -> dict[str, Any]:
    """The activation quantizers to calibrate, by the name of the first module that uses each.

    Those of outputs are named by their own path, which ends in ``.output_quant``.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, (QuantLinear, QuantConv2d)):
            continue
        for path, proxy in ((name, module.input_quant), (f"{name}.output_quant", module.output_quant)):
            if is_static(proxy) and id(proxy) not in seen:
                seen.add(id(proxy))
                found[path] = proxy
    return found


def _move(old: Any, new: Any) -> None:
    device = old.weight.device
    new.to(device)
    new.weight = old.weight
    if isinstance(old, (nn.Linear, nn.Conv2d)):
        new.bias = old.bias
    new.train(old.training)
