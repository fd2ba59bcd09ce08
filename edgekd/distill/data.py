"""Tokenised splits as ragged arrays, and the length-bucketed batches made from them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.signal import Batch

Ints = NDArray[np.int64]
BUCKET_BATCHES = 50  # batches sorted by length together: enough to pad little, few enough to stay shuffled
ENCODED = 1000  # texts encoded together: what the tokenizer says of them is far larger than what is kept of it


@dataclass(frozen=True)
class Tokens:
    """One split, tokenised: example i is ``ids[offsets[i]:offsets[i + 1]]`` (specials included, at least one token).

    ``starts`` holds each token's first character in the text that is no space (-1 for specials): how states of another
    tokenizer are found for it. ``labels`` are int64 class indices.
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
        mask, flat = ragged(self.offsets, rows)
        return np.where(mask, self.ids[flat], self.pad_id).astype(np.int64), mask, flat

    def feed(self, rows: Ints, names: Iterable[str]) -> dict[str, Ints]:
        """The inputs of these names for ``rows``, as a graph takes them: int64 (B, T), all tokens of the first type."""
        ids, mask, _ = self.gather(rows)
        given = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        return {name: given[name] for name in names}


def ragged(offsets: Ints, rows: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Which of (B, T) places are tokens of ``rows``, and each one's flat position (0 where it is none)."""
    first_B, last_B = offsets[rows], offsets[rows + 1]
    places_T = np.arange(int((last_B - first_B).max()))
    mask = places_T < (last_B - first_B)[:, None]
    return mask, np.where(mask, first_B[:, None] + places_T, 0)


def model_inputs(ids_BT: Ints, mask_BT: NDArray[np.bool_]) -> dict[str, Tensor]:
    """What a transformer is called with: ``input_ids`` and ``attention_mask``, (B, T) int64 each."""
    return {"input_ids": torch.from_numpy(ids_BT), "attention_mask": torch.from_numpy(mask_BT.astype(np.int64))}


def tokenise(tokenizer: Any, texts: list[str], labels: Ints, max_length: int, pad_id: int) -> Tokens:
    """Encode ``texts`` with a ``tokenizers.Tokenizer``, cut on the right to ``max_length`` tokens.

    A text of which no token is left becomes one padding token that is attended to. ``edgekd.deploy`` does all the same.
    What grows with the tokens is kept in temporary files, memory-mapped, which go when nobody looks at them any more.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction="right")
    counts = [np.zeros(1, np.int64)]
    with tempfile.TemporaryFile() as ids, tempfile.TemporaryFile() as starts:
        for i in range(0, len(texts), ENCODED):
            encodings = tokenizer.encode_batch(texts[i : i + ENCODED])
            for text, e in zip(texts[i : i + ENCODED], encodings, strict=True):
                special = np.asarray(e.special_tokens_mask or [1], np.bool_)
                begin = np.asarray([_letter(text, *o) for o in e.offsets] or [0], np.int32)
                ids.write(np.asarray(e.ids or [pad_id], np.int32).tobytes())
                starts.write(np.where(special, np.int32(-1), begin).tobytes())
            counts.append(np.asarray([max(1, len(e.ids)) for e in encodings], np.int64))
        offsets = np.cumsum(np.concatenate(counts))
        return Tokens(_mapped(ids), _mapped(starts), offsets, np.asarray(labels, np.int64), pad_id)


def text_read(student: Tokens, teacher: Tokens) -> float:
    """The mean share (0 to 1) of what a teacher reads of a text that its student reads too, where both cut it."""
    mine, its = (np.maximum.reduceat(tokens.starts, tokens.offsets[:-1]) + 1 for tokens in (student, teacher))
    return float(np.where(mine < its, mine / np.maximum(its, 1), 1).mean())


def _letter(text: str, begin: int, end: int) -> int:
    """Where a token's first letter is: some tokenizers count the space before a word to it, where another word ends."""
    said = text[begin:end]
    return begin + len(said) - len(said.lstrip())


def _mapped(file: Any) -> NDArray[np.int32]:
    file.flush()
    return np.memmap(file, np.int32, mode="c").view(np.ndarray)


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
    total_tokens = int((tokens.offsets[rows + 1] - tokens.offsets[rows]).sum())
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        ids, mask, flat = tokens.gather(part)
        signal = teacher.signal(part, tokens, mask, flat) if teacher is not None else None
        labels = torch.from_numpy(tokens.labels[part])
        yield Batch(model_inputs(ids, mask), labels, len(rows), total_tokens, signal, progress)


def by_length(tokens: Tokens, batch_size: int) -> list[Ints]:
    """All rows in batches of similar length, for evaluation."""
    order = np.argsort(tokens.lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
