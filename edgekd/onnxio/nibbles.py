"""Four-bit integers in bytes, as onnxruntime's block-wise operators read them: low nibble first, 8 stands for 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ZERO = 8


def pack(values: NDArray[np.int8], width: int) -> NDArray[np.uint8]:
    """(..., n) integers in -8..7 -> (..., ceil(width / 2)) bytes; rows are filled up to ``width`` with zeros."""
    missing = width + width % 2 - values.shape[-1]
    filled = np.pad(values + ZERO, [(0, 0)] * (values.ndim - 1) + [(0, missing)], constant_values=ZERO).astype(np.uint8)
    return filled[..., 0::2] | filled[..., 1::2] << np.uint8(4)


def unpack(packed: NDArray[np.uint8], width: int) -> NDArray[np.int8]:
    """(..., m) bytes -> the first ``width`` integers of each row."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8) - np.int8(ZERO)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :width]
