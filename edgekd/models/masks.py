"""Attention masks of decoders in a form that the TorchScript exporter can trace.

transformers makes such a mask out of functions of four indices (batch, head, query, key). Version 4 maps them over the
indices with ``torch.vmap``, which cannot be traced. All they do is compare and look up, so indices that broadcast give
the same mask; that is how version 5 does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from transformers import masking_utils

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@contextmanager
def traceable() -> Iterator[None]:
    """Within, every mask is made by broadcasting; nothing changes under a transformers that does so by itself."""
    if not hasattr(masking_utils, "_vmap_for_bhqkv"):
        yield
        return
    mapped, looked_up = masking_utils._vmap_for_bhqkv, masking_utils.TransformGetItemToIndex
    masking_utils._vmap_for_bhqkv = _broadcast
    masking_utils.TransformGetItemToIndex = nullcontext  # helps vmap with indices; ours are ordinary tensors
    try:
        yield
    finally:
        masking_utils._vmap_for_bhqkv, masking_utils.TransformGetItemToIndex = mapped, looked_up


def _broadcast(mask: Mask, *_: Any) -> Mask:
    """``mask`` over vectors of indices, (batch, head, query, key)."""

    def whole(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask(batch[:, None, None, None], head[:, None, None], query[:, None], key)

    return whole
