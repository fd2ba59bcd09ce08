"""Four-bit weights in blocks: the integers that a trained model holds, and the model with what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from brevitas.nn import QuantEmbedding, QuantLinear
from numpy.typing import NDArray
from torch import nn


class Blocks(NamedTuple):
    """A weight (rows, width): ``integers`` int8 in -7..7, one of the float16 ``scales`` (rows, blocks) for ``size``."""

    integers: NDArray[np.int8]
    scales: NDArray[np.float16]
    size: int

    def dequantized(self) -> NDArray[np.float32]:
        """(rows, width). Exact: three bits times eleven fit into a float32."""
        scales = np.repeat(self.scales.astype(np.float32), self.size, axis=1)[:, : self.integers.shape[1]]
        return self.integers * scales


@torch.no_grad()
def block_weights(model: nn.Module) -> dict[str, Blocks]:
    """The weights of the modules that are quantized in blocks, by module; empty under any other scheme."""
    found = {}
    for name, module in _in_blocks(model):
        value_RBK, scale_RB1, *_ = module.weight_quant.tensor_quant(module.weight)
        integers = (value_RBK / scale_RB1).round().flatten(1)[:, : module.weight.shape[1]]
        scales = scale_RB1.squeeze(2).half().cpu().numpy()
        found[name] = Blocks(integers.to(torch.int8).cpu().numpy(), scales, value_RBK.shape[2])
    return found


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Put float modules that hold the fake-quantized weights in the place of those quantized in blocks."""
    quantized = list(_in_blocks(model))
    try:
        for name, module in quantized:
            model.set_submodule(name, _float(module))
        yield
    finally:
        for name, module in quantized:
            model.set_submodule(name, module)


def quantized(model: nn.Module) -> bool:
    """Whether any module's weight is fake-quantized, in blocks or otherwise."""
    return any(hasattr(module, "weight_quant") for module in model.modules())


def _in_blocks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)) and module.weight_quant.is_groupwise:
            yield name, module


@torch.no_grad()
def _float(module: Any) -> nn.Module:
    rows, width = module.weight.shape
    new: Any
    if isinstance(module, QuantEmbedding):
        new = nn.Embedding(rows, width, padding_idx=module.padding_idx)
    else:
        new = nn.Linear(width, rows, bias=module.bias is not None)
        new.bias = module.bias
    new.weight = nn.Parameter(module.weight_quant(module.weight), requires_grad=False)
    new.train(module.training)
    return new  # type: ignore[no-any-return]
