"""What a timed call is given: real test examples in their order, or a fixed number of their tokens.

An inputs file is an ``.npz`` with ``ids`` int64 (all tokens of all examples, special tokens included), ``offsets``
int64 (N + 1) and ``labels`` int64 (N). Numpy only: the child reads it too.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import BenchError

Int64 = NDArray[np.int64]

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for an ``.npz`` that is missing, cut off, altered, or another file altogether."""


@dataclass(frozen=True)
class Inputs:
    """The tokenized test split: example ``i`` is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: Int64
    offsets: Int64
    labels: Int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Int64:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def asked_of(asked: Mapping[str, Sequence[str]], runtime: str) -> Sequence[str]:
    """The workloads of a runtime (``spec.Bench.workloads``): real lengths where none are asked for."""
    return asked.get(runtime, ("real",))


def load(path: Path) -> Inputs:
    """Read an inputs file. Raises ``BenchError`` if it is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, offsets, labels = (file[name].astype(np.int64) for name in ("ids", "offsets", "labels"))
    except UNREADABLE as error:
        raise BenchError(f"cannot read the benchmark inputs {path} ({error}); run the export stage again") from error
    good = len(offsets) == len(labels) + 1 and offsets[0] == 0 and offsets[-1] == len(ids) and len(labels) > 0
    if not good or (np.diff(offsets) <= 0).any():
        raise BenchError(f"{path}: offsets, ids and labels do not fit together; run the export stage again")
    return Inputs(ids, offsets, labels)


def fixed_length(workload: str) -> int | None:
    """N of ``fixedN``, ``None`` for ``real``. Raises ``BenchError`` for anything else."""
    if workload == "real":
        return None
    if match := re.fullmatch(r"fixed([1-9]\d*)", workload):
        return int(match[1])
    raise BenchError(f"unknown workload {workload!r}; it is 'real' or 'fixedN' with N tokens, for example 'fixed64'")


def calls(workload: str, inputs: Inputs, count: int) -> list[Int64]:
    """The tokens of ``count`` calls, the same ones for whoever asks.

    ``real``: ``count`` examples spread evenly over the test split, in its order, and over again if it has fewer: so the
    lengths are those of the split even where it is sorted. ``fixedN``: windows of N tokens, one after another, over the
    concatenated examples, and over again.
    """
    length = fixed_length(workload)
    if length is None:
        step = max(len(inputs) / count, 1.0)
        return [inputs[int(index * step) % len(inputs)] for index in range(count)]
    window = np.arange(length)
    return [inputs.ids[(index * length + window) % len(inputs.ids)] for index in range(count)]


def feeds(tokens: Int64, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """A batch of one example for a model whose inputs have ``names``: int64 arrays of shape (1, tokens)."""
    made: dict[str, NDArray[Any]] = {}
    for name in names:
        if name == "input_ids":
            made[name] = np.ascontiguousarray(tokens[None])
        elif name == "attention_mask":
            made[name] = np.ones((1, len(tokens)), np.int64)
        elif name == "token_type_ids":
            made[name] = np.zeros((1, len(tokens)), np.int64)
        else:
            raise BenchError(f"the model has an input {name!r}, which no workload can feed")
    return made


def one_of_each_shape(prepared: Sequence[dict[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
    """The first call of every distinct length: what a runtime that prepares itself per shape must have seen once."""
    found = {tuple(array.shape for array in call.values()): call for call in reversed(prepared)}
    return list(found.values())
