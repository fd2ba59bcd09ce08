"""What a model's quantized linears are given on calibration examples: all that PTQ techniques ask of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from brevitas.nn import QuantLinear
from torch import Tensor, nn

from edgekd.progress import Progress
from edgekd.quant.calibrate import Batch, watch


@dataclass
class Moments:
    """Of one layer's input, C channels over all tokens but padding, float32: ``x`` as it comes, ``q`` quantized."""

    largest_C: Tensor  # |x|
    mean_C: Tensor  # x
    quantized_mean_C: Tensor  # q
    second_CC: Tensor  # q q^T
    count: int = 0


def readers(model: nn.Module) -> dict[str, list[str]]:
    """The quantized linears by the input they read: first reader -> all of them, in the model's order."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            found.setdefault(id(module.input_quant), []).append(name)
    return {names[0]: names for names in found.values()}


def observed_linears(model: nn.Module, observed: Mapping[str, Moments]) -> Iterator[tuple[str, Any, Moments]]:
    """Each quantized linear that the model calls: its name, itself, and the moments of its input."""
    for first, names in readers(model).items():
        for name in names if first in observed else ():
            yield name, model.get_submodule(name), observed[first]


def moments(model: Any, batches: Sequence[Batch], progress: Progress | None = None) -> dict[str, Moments]:
    """The moments over ``batches`` by first reader, the model quantized as it is; no labels are read.

    Linears that the model never calls are left out.
    """
    found: dict[str, Moments] = {}

    def add(name: str, x_NC: Tensor, q_NC: Tensor) -> None:
        if name not in found:
            zero_C = torch.zeros_like(x_NC[0])
            found[name] = Moments(zero_C, zero_C.clone(), zero_C.clone(), zero_C.new_zeros(len(zero_C), len(zero_C)))
        mine = found[name]
        mine.largest_C = torch.maximum(mine.largest_C, x_NC.abs().amax(0))
        mine.mean_C += x_NC.sum(0)
        mine.quantized_mean_C += q_NC.sum(0)
        mine.second_CC += q_NC.T @ q_NC
        mine.count += len(x_NC)

    proxies = {name: model.get_submodule(name).input_quant for name in readers(model)}
    watch(model, proxies, batches, add, progress)
    for mine in found.values():
        for total in (mine.mean_C, mine.quantized_mean_C, mine.second_CC):
            total /= mine.count
    return found
