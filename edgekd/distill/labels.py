"""The label store: a teacher's outputs, computed once, memory-mapped afterwards.

A folder of plain ``.npy`` files, one per split and field: ``train.logits.npy`` (N, C) float32 and, when a loss needs
them, ``train.hidden.<layer>.npy`` (total teacher tokens, H) float16 beside ``train.starts.npy`` and
``train.offsets.npy``, which say where each token begins. The key is the example, not the token: a student with
another tokenizer finds, for each of its tokens, the teacher's token that covers the same character.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.distill.data import Ints, Tokens, by_length
from edgekd.distill.signal import Signal
from edgekd.errors import DataError, TrainingError
from edgekd.progress import Progress

BLOCK = 64  # examples per teacher forward, and per unit of resumable work


def estimate_bytes(examples: int, tokens: int, classes: int, layers: int, hidden: int) -> int:
    """Bytes the store will take: float32 logits, and float16 states of ``layers`` layers with their positions."""
    return examples * (4 * classes + 8) + tokens * (layers * hidden * 2 + 4 * bool(layers))


def compute(
    out: Path,
    split: str,
    tokens: Tokens,
    model: Any,
    layers: Sequence[int],
    device: torch.device,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
    bf16: bool = False,
) -> None:
    """Run the teacher over one split and write its logits and the hidden states of ``layers`` into ``out``.

    Ranks share the work block by block; each block is marked done after it is on disk, so a killed run goes on where
    it stopped, also with another number of ranks. ``bf16``: matrix products in bfloat16. A full disk is an ``OSError``
    before any work is done; ``TrainingError`` for an output that is not finite, or too large for float16.
    """
    blocks = by_length(tokens, BLOCK)
    ready, done_path = out / f"{split}.ready.tmp", out / f"{split}.done.tmp"  # the store drops *.tmp at the end
    if rank == 0 and not ready.exists():
        _create(out, split, tokens, model.config, layers)
        done_path.write_bytes(bytes(len(blocks)))
        ready.touch()
    _wait(ready.exists)
    done = np.memmap(done_path, mode="r+", dtype=np.uint8)
    fields = {
        f: np.load(out / f"{split}.{f}.npy", mmap_mode="r+") for f in ("logits", *(f"hidden.{i}" for i in layers))
    }
    mine = [i for i in range(len(blocks)) if not done[i] and i % world_size == rank]
    model.eval()
    with progress.bar(f"labels: {split}", total=len(mine), unit="block") as advance:
        for i in mine:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                _block(fields, split, tokens, blocks[i], model, layers, device)
            for field in fields.values():
                field.flush()
            done[i] = 1
            done.flush()
            advance(1)
    if rank == 0:
        _wait(lambda: bool(np.memmap(done_path, mode="r", dtype=np.uint8).all()))


def _create(out: Path, split: str, tokens: Tokens, config: Any, layers: Sequence[int]) -> None:
    """The split's files, positions filled in and disk reserved: a full disk met through a memory map would be SIGBUS.

    What was reserved is given back when there is not enough for all.
    """
    empty: dict[str, tuple[tuple[int, ...], Any]] = {"logits": ((len(tokens), config.num_labels), np.float32)}
    for layer in layers:
        empty[f"hidden.{layer}"] = ((len(tokens.ids), config.hidden_size), np.float16)
    known: dict[str, NDArray[Any]] = {"starts": tokens.starts, "offsets": tokens.offsets} if layers else {}
    empty |= {name: (values.shape, values.dtype) for name, values in known.items()}
    try:
        for name, (shape, dtype) in empty.items():
            path = out / f"{split}.{name}.npy"
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            if name in known:
                array[:] = known[name]
    except OSError:
        for path in out.glob(f"{split}.*.npy"):
            path.unlink()
        raise


def _block(
    fields: Any, split: str, tokens: Tokens, rows: Ints, model: Any, layers: Sequence[int], device: torch.device
) -> None:
    ids, mask, flat = tokens.gather(rows)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
    result = model(**{k: v.to(device) for k, v in inputs.items()}, output_hidden_states=bool(layers))
    logits = result.logits.float().cpu().numpy()
    _refuse(~np.isfinite(logits).all(1), rows, split, "logits are not finite: look at that text, or at the teacher")
    fields["logits"][rows] = logits
    for layer in layers:
        states = result.hidden_states[layer].half().cpu().numpy()
        bad = (mask & ~np.isfinite(states).all(2)).any(1)
        what = f"hidden states of layer {layer} do not fit into float16: leave that layer out of HiddenMSE(layers=...)"
        _refuse(bad, rows, split, what)
        fields[f"hidden.{layer}"][flat[mask]] = states[mask]


def _refuse(bad: NDArray[np.bool_], rows: Ints, split: str, what: str) -> None:
    if bad.any():
        raise TrainingError(f"labels: in {split} example {int(rows[bad][0])} (counted from 0) the teacher's {what}")


def _wait(ready: Any) -> None:
    while not ready():
        time.sleep(0.05)


class LabelStore:
    """One split of a finished store, read through memory maps: its memory does not grow with the data."""

    def __init__(self, folder: Path, split: str, layers: Sequence[int] = ()) -> None:
        self.logits: NDArray[np.float32] = np.load(folder / f"{split}.logits.npy", mmap_mode="r")
        self.hidden = {i: np.load(folder / f"{split}.hidden.{i}.npy", mmap_mode="r") for i in layers}
        self.starts = np.load(folder / f"{split}.starts.npy", mmap_mode="r") if layers else None
        self.offsets = np.load(folder / f"{split}.offsets.npy") if layers else None
        self._aligned: NDArray[np.int64] | None = None

    def signal(self, rows: Ints, tokens: Tokens, mask: NDArray[np.bool_], flat: Ints) -> Signal:
        """The teacher's signal for ``rows``, its hidden states (float16) placed at the student's tokens."""
        hidden: dict[int, torch.Tensor] = {}
        if self.hidden:
            if self._aligned is None:
                self._aligned = self._align(tokens)
            where = np.where(mask, self._aligned[flat], 0)
            hidden = {layer: torch.from_numpy(states[where]) for layer, states in self.hidden.items()}
        return Signal(torch.from_numpy(self.logits[rows]), hidden)

    def _align(self, tokens: Tokens) -> Ints:
        """For each of the student's tokens, the teacher's token that covers its first character.

        Leading specials pair with leading ones, trailing with the last; raises ``DataError`` if the splits differ.
        """
        assert self.starts is not None and self.offsets is not None
        if len(self.offsets) != len(tokens.offsets):
            raise DataError("the label store holds another number of examples than the split: rerun the labels stage")
        aligned = np.empty(len(tokens.ids), np.int64)
        for i in range(len(tokens)):  # once per run, not per step
            mine = slice(tokens.offsets[i], tokens.offsets[i + 1])
            first, last = int(self.offsets[i]), int(self.offsets[i + 1])
            starts = np.asarray(self.starts[first:last])
            text = np.flatnonzero(starts >= 0)
            wanted = tokens.starts[mine]
            found = np.searchsorted(starts[text], wanted, side="right") - 1
            place = text[np.clip(found, 0, len(text) - 1)] if len(text) else np.zeros(len(wanted), np.int64)
            special = wanted < 0
            leading = special & (np.cumsum(~special) == 0)
            aligned[mine] = first + np.where(special, np.where(leading, 0, last - first - 1), place)
        return aligned
