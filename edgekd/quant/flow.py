"""Which layer and which operation read which tensor, found by watching one forward pass: never by tracing code."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LAYERS = (nn.Linear, nn.Embedding, nn.Conv2d, nn.BatchNorm2d)
CUTS: dict[str, tuple[float, float | None]] = {"aten.relu": (0.0, None), "aten.hardtanh": (-1.0, 1.0)}
"""What clips, and to what where it is not told otherwise."""
COMMUTE = (*CUTS, "aten.max_pool2d_with_indices", "aten.constant_pad_nd")
"""What may be done before or after a static quantization with equal results (``onnxio.passes.early_quantize``)."""


class Read(NamedTuple):
    """``reader`` (a layer by its path, an operation by its name, "" for the model's own output) and what it makes."""

    reader: str
    made: int
    options: tuple[Any, ...] = ()


class Flow:
    """What a forward pass did; tensors go by numbers."""

    def __init__(self) -> None:
        self.given: dict[str, int] = {}  # by layer: what its first call was given; layers never called are left out
        self.made: dict[str, list[int]] = {}  # by layer: what its calls returned
        self.reads: dict[int, list[Read]] = {}  # by tensor

    def reader(self, layer: str) -> str | None:
        """The one that reads what ``layer`` returns, if that is one alone and ``layer`` is called once."""
        reads = self._only(layer)
        return reads[0].reader if len(reads) == 1 else None

    def requantized(self, layer: str, quantized: Collection[str]) -> bool:
        """Whether what ``layer`` returns reaches nothing but inputs of ``quantized`` layers, by way of ``COMMUTE``."""
        reads = self._only(layer)
        while len(reads) == 1 and reads[0].reader in COMMUTE:
            reads = self.reads.get(reads[0].made, [])
        return bool(reads) and all(one.reader in quantized and len(self.made[one.reader]) == 1 for one in reads)

    def cut(self, layer: str) -> tuple[float, float | None] | None:
        """The (lowest, highest) that the one reader of what ``layer`` returns lets through, if it clips."""
        reads = self._only(layer)
        if len(reads) != 1 or reads[0].reader not in CUTS:
            return None
        told, usual = reads[0].options, CUTS[reads[0].reader]
        return told[0] if told else usual[0], told[1] if len(told) > 1 else usual[1]

    def _only(self, layer: str) -> list[Read]:
        made = self.made.get(layer, [])
        return self.reads.get(made[0], []) if len(made) == 1 else []


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations outside of ``LAYERS``, and those layers as one each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow()
        self.inside = False
        self.alive: list[Tensor] = []  # so that no two tensors have the same id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not self.inside:
            self.note(str(func.overloadpacket), (args, kwargs), made, args[1:])
        return made

    def note(self, reader: str, given: Any, made: Any, options: tuple[Any, ...] = ()) -> None:
        tensors = [[t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in (made, given)]
        self.alive += [*tensors[0], *tensors[1]]
        for tensor in tensors[1]:
            first = id(tensors[0][0]) if tensors[0] else 0
            self.flow.reads.setdefault(id(tensor), []).append(Read(reader, first, options))

    def enter(self, layer: str, given: Tensor) -> None:
        self.inside = True
        self.flow.given.setdefault(layer, id(given))

    def leave(self, layer: str, given: Tensor, made: Tensor) -> None:
        self.inside = False
        self.note(layer, given, made)
        self.flow.made.setdefault(layer, []).append(id(made))


@torch.no_grad()
def watch(model: Any, example: dict[str, Tensor]) -> Flow:
    """What ``model`` does with ``example``, in evaluation mode."""
    seen = _Watch()
    hooks = []
    for name, module in model.named_modules():
        if type(module) in LAYERS:
            hooks += [
                module.register_forward_pre_hook(lambda m, args, name=name: seen.enter(name, args[0])),
                module.register_forward_hook(lambda m, args, out, name=name: seen.leave(name, args[0], out)),
            ]
    training = model.training
    model.eval()
    try:
        with seen:
            out = model(**example)
        seen.note("", out, ())
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return seen.flow
