"""Draw examples by class, the same ones for one seed: what is held out, what a limit leaves, what calibrates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError

Ints = NDArray[np.int64]


def holdout(labels: Ints, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Mark the rows held out: about ``fraction`` of each class, at least one and never all; none of a class of one."""
    if not 0 < fraction < 1:
        raise DataError(f"the fraction to hold out is {fraction}; it must be between 0 and 1")
    marked = np.zeros(len(labels), np.bool_)
    for rows in _shuffled_by_class(labels, seed):
        if len(rows) > 1:
            marked[rows[: min(max(int(len(rows) * fraction + 0.5), 1), len(rows) - 1)]] = True
    if not marked.any():
        raise DataError("no class has two training examples, so none can be held out; give that split's source")
    return marked


def stratified(labels: Ints, count: int, seed: int) -> Ints:
    """Draw ``count`` rows (all, if there are fewer), ascending, each class in proportion to its size.

    Every class has one at least where ``count`` allows it; what rounding leaves goes to the largest remainders.
    """
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    classes = _shuffled_by_class(labels, seed)
    sizes = np.array([len(rows) for rows in classes])
    share = count * sizes / sizes.sum()
    taken = np.floor(share).astype(np.int64)
    if count >= len(sizes):
        taken = np.maximum(taken, 1)
    while taken.sum() > count:  # the classes raised to one are paid for by those furthest above their share
        taken[np.argmax(np.where(taken > 1, taken - share, -np.inf))] -= 1
    while taken.sum() < count:
        taken[np.argmax(np.where(taken < sizes, share - taken, -np.inf))] += 1
    return np.sort(np.concatenate([rows[:number] for rows, number in zip(classes, taken, strict=True)]))


def _shuffled_by_class(labels: Ints, seed: int) -> list[Ints]:
    """The rows of each class, in an order that only ``seed`` and the number of rows decide.

    Sorted by the raw stream of a bit generator, which NumPy keeps the same over its versions; its ``permutation``
    may change, and with it which calibration ids are training examples.
    """
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    return [order[labels[order] == label] for label in np.unique(labels)]
