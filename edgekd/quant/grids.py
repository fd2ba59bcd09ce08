"""The scale and the zero point that a fake-quantized module computes with, which an exported file has to hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.quant.quantizers import is_static


class Grid(NamedTuple):
    """``scale`` float32 and ``zero_point``, each of one number or one for every channel (for every block of a row)."""

    scale: NDArray[Any]
    zero_point: NDArray[Any]


@torch.no_grad()
def of(model: nn.Module, path: str) -> Grid | None:
    """What the quantizer at ``path`` (``bert.pooler.dense.weight_quant``) says now, in one dimension.

    ``None`` where there is no such quantizer, or one whose range is found at run time.
    """
    parent, _, kind = path.rpartition(".")
    try:
        layer: Any = model.get_submodule(parent)
        quantizer: Any = getattr(layer, kind)
    except AttributeError:
        return None
    if kind == "weight_quant":
        _, scale, zero_point, _ = quantizer.tensor_quant(layer.weight)
    elif kind in ("input_quant", "output_quant") and is_static(quantizer):
        quant = quantizer.fused_activation_quant_proxy.tensor_quant
        _, scale, zero_point, _ = quant(torch.zeros(1, device=quant.scaling_impl.value.device))
    else:
        return None
    return Grid(*(t.detach().flatten().float().cpu().numpy() for t in (scale, zero_point)))
