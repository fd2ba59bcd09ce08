"""Tokenised splits as ragged arrays, and the length-bucketed batches made from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.distill.signal import Batch

Ints = NDArray[np.int64]
BUCKET_BATCHES = 50  # batches sorted by length together: enough to pad little, few enough to stay shuffled


@dataclass(frozen=True)
class Tokens:
    """One split, tokenised: example i is ``ids[offsets[i]:offsets[i + 1]]`` (specials included, at least one token).

    ``starts`` holds each token's first character in the text (-1 for specials): how states of another tokenizer
    are found for it. ``labels`` are int64 class indices.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    offsets: Ints
    labels: Ints
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens per example."""
        return np.diff(self.offsets)

    def gather(self, rows: Ints) -> tuple[Ints, NDArray[np.bool_], Ints]:
        """Padded ids, token mask, and flat positions into ``ids`` for ``rows``: each (B, T)."""
        lengths = self.lengths[rows]
        mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
        flat = np.where(mask, self.offsets[rows][:, None] + np.arange(mask.shape[1])[None, :], 0)
        return np.where(mask, self.ids[flat], self.pad_id).astype(np.int64), mask, flat

    def feed(self, rows: Ints, names: Iterable[str]) -> dict[str, Ints]:
        """The inputs of these names for ``rows``, as a graph takes them: int64 (B, T), all tokens of the first type."""
        ids, mask, _ = self.gather(rows)
        given = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        return {name: given[name] for name in names}


def tokenise(tokenizer: Any, texts: list[str], labels: Ints, max_length: int, pad_id: int) -> Tokens:
    """Encode ``texts`` with a ``tokenizers.Tokenizer``, cut on the right to ``max_length`` tokens.

    A text of which no token is left becomes one padding token that is attended to. ``edgekd.deploy`` does all the same.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction="right")
    encodings = tokenizer.encode_batch(texts)
    ids = np.concatenate([np.asarray(e.ids or [pad_id], np.int32) for e in encodings])
    special = np.concatenate([np.asarray(e.special_tokens_mask or [1], np.bool_) for e in encodings])
    starts = np.concatenate([np.asarray([o[0] for o in e.offsets] or [0], np.int32) for e in encodings])
    offsets = np.concatenate([[0], np.cumsum([max(1, len(e.ids)) for e in encodings])]).astype(np.int64)
    return Tokens(ids, np.where(special, np.int32(-1), starts), offsets, np.asarray(labels, np.int64), pad_id)


def epoch_steps(lengths: Ints, batch_size: int, seed: int, epoch: int) -> list[Ints]:
    """The rows of every step of one epoch: shuffled, then batched with others of similar length.

    The order depends on ``seed`` and ``epoch`` alone, so that a resumed run continues it exactly. The last, smaller
    batch is kept: every example is seen once.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    span = batch_size * BUCKET_BATCHES
    parts = [order[i : i + span] for i in range(0, len(order), span)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    steps = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [steps[i] for i in rng.permutation(len(steps))]


def micro_batches(
    tokens: Tokens, rows: Ints, size: int | None, teacher: Any = None, progress: float = 0.0
) -> Iterator[Batch]:
    """The micro-batches of one step, at most ``size`` examples each; ``teacher`` is a label store's split or None."""
    size = size or len(rows)
    total_tokens = int(tokens.lengths[rows].sum())
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        ids, mask, flat = tokens.gather(part)
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        signal = teacher.signal(part, tokens, mask, flat) if teacher is not None else None
        labels = torch.from_numpy(tokens.labels[part])
        yield Batch(inputs, labels, len(rows), total_tokens, signal, progress)


def by_length(tokens: Tokens, batch_size: int) -> list[Ints]:
    """All rows in batches of similar length, for evaluation."""
    order = np.argsort(tokens.lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
