"""The label store: a teacher's outputs, computed once, memory-mapped afterwards.

A folder of plain ``.npy`` files, one per split and field: ``train.logits.npy`` (N, C) float32, or the largest of each
row as ``top`` (N, K) with their ``classes`` (int32) and ``rest`` (N, 1), log-sum-exp of the others; and, when losses
need them, ``train.pooled.npy`` (N, H) float32, ``train.hidden.<layer>.npy`` and ``train.query.<block>.npy``, ``key``,
``value`` (total teacher tokens, channels) float16 beside ``train.starts.npy`` and ``train.offsets.npy``, which say
where each token begins. The key is the example, not the token: a student with another tokenizer finds, for each of its
tokens, the teacher's token that covers the same character. A black box leaves log-probabilities as ``logits``, NaN
where it has no answer, and ``train.known.npy`` (N, C): of which classes it told them; the others share what is left.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.data import Ints, Tokens, by_length, model_inputs, ragged
from edgekd.distill.record import record
from edgekd.distill.signal import Signal
from edgekd.distill.taps import LOGITS, Needs
from edgekd.errors import DataError, StoreError, TrainingError
from edgekd.progress import Progress

TOKEN_FIELDS = {"hidden": "hidden states", "query": "queries", "key": "keys", "value": "values"}
QKV = ("query", "key", "value")
BLOCK = 64  # examples per teacher forward, and per unit of resumable work


def compute(
    out: Path,
    split: str,
    tokens: Tokens,
    model: Any,
    needs: Needs,
    device: torch.device,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
    bf16: bool = False,
    who: str = "labels",
) -> None:
    """Run the teacher over one split and write its logits, and what else ``needs`` names, into ``out``.

    Ranks share the work block by block; each block is marked done after it is on disk, so a killed run goes on where
    it stopped, also with another number of ranks. ``bf16``: matrix products in bfloat16; ``who`` is told on the bar.
    A full disk is an ``OSError`` before any work is done; ``TrainingError`` for an output that is not finite, or too
    large for float16.
    """
    blocks = by_length(tokens, BLOCK)
    ready, done_path = out / f"{split}.ready.tmp", out / f"{split}.done.tmp"  # the store drops *.tmp at the end
    model.eval()
    if rank == 0 and not ready.exists():
        ids, mask, _ = tokens.gather(np.array([0]))
        _create(out, split, tokens, _outputs(model_inputs(ids, mask), model, needs, device), needs.tokens)
        done_path.write_bytes(bytes(len(blocks)))
        ready.touch()
    _wait(ready.exists)
    done = np.memmap(done_path, mode="r+", dtype=np.uint8)
    fields = {name: _map(out, split, name, "r+") for name in names(needs)}
    _refuse_damage(out, split, fields, len(tokens), len(tokens.ids))
    if len(done) != len(blocks):
        raise _damaged(done_path, f"{len(done)} blocks instead of {len(blocks)}")
    mine = [i for i in range(len(blocks)) if not done[i] and i % world_size == rank]
    with progress.bar(f"{who}: {split}", total=len(mine), unit="block") as advance:
        for i in mine:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                _block(fields, split, tokens, blocks[i], model, needs, device)
            for field in fields.values():
                field.flush()
            done[i] = 1
            done.flush()
            advance(1)
    if rank == 0:
        _wait(lambda: bool(np.memmap(done_path, mode="r", dtype=np.uint8).all()))


def write(out: Path, split: str, logits_NC: NDArray[np.float32], known_NC: NDArray[np.bool_]) -> None:
    """Write what a black box answered about one split."""
    np.save(out / f"{split}.logits.npy", logits_NC)
    np.save(out / f"{split}.known.npy", known_NC)


def names(needs: Needs) -> tuple[str, ...]:
    """The fields of a store, but for the positions of tokens."""
    hidden = tuple(f"hidden.{layer}" for layer in needs.hidden)
    attention = tuple(f"{part}.{block}" for block in needs.attention for part in QKV)
    logits = ("logits",) if needs.top is None else ("top", "classes", "rest")
    return (*logits, *("pooled",) * needs.pooled, *hidden, *attention)


def cut(logits_BC: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest ``count`` logits of each row (B, K), their classes (int32), and log-sum-exp of the others (B, 1)."""
    top_BK, classes_BK = logits_BC.float().topk(count, dim=-1)
    others_BC = logits_BC.float().scatter(1, classes_BK, -torch.inf)
    return top_BK, classes_BK.int(), others_BC.logsumexp(-1, keepdim=True)


def whole(top_BK: Tensor, classes_BK: Tensor, rest_B1: Tensor, classes: int) -> Tensor:
    """Logits (B, C) of which softmax gives the top their probabilities, and the others equal shares of what is left."""
    shared_BC = (rest_B1 - math.log(classes - top_BK.shape[1])).expand(-1, classes)
    return shared_BC.scatter(1, classes_BK.long(), top_BK)


def _outputs(inputs: dict[str, Tensor], model: Any, needs: Needs, device: torch.device) -> dict[str, Tensor]:
    """The teacher's fields for a batch: (B, C), and (B, T, channels) of what belongs to tokens."""
    with torch.inference_mode():
        signal = record(model, {k: v.to(device) for k, v in inputs.items()}, needs)
    attention = [states for block in needs.attention for states in signal.attention[block]]
    pooled = [] if signal.pooled_BH is None else [signal.pooled_BH]
    logits = (signal.logits_BC,) if needs.top is None else cut(signal.logits_BC, needs.top)
    return dict(zip(names(needs), (*logits, *pooled, *signal.hidden.values(), *attention), strict=True))


def _create(out: Path, split: str, tokens: Tokens, outputs: dict[str, Tensor], positions: bool) -> None:
    """The split's files, positions filled in and disk reserved: a full disk met through a memory map would be SIGBUS.

    ``outputs`` are those of one example. What was reserved is given back when there is not enough for all.
    """
    empty: dict[str, tuple[tuple[int, ...], Any]] = {
        name: ((len(tokens), field.shape[-1]), np.int32 if name == "classes" else np.float32)
        if field.ndim == 2
        else ((len(tokens.ids), field.shape[-1]), np.float16)
        for name, field in outputs.items()
    }
    known: dict[str, NDArray[Any]] = {"starts": tokens.starts, "offsets": tokens.offsets} if positions else {}
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


def _block(fields: Any, split: str, tokens: Tokens, rows: Ints, model: Any, needs: Needs, device: torch.device) -> None:
    ids, mask, flat = tokens.gather(rows)
    for name, field in _outputs(model_inputs(ids, mask), model, needs, device).items():
        values = field.to(torch.float32 if field.ndim == 2 else torch.float16).cpu().numpy()
        bad = ~np.isfinite(values)
        if field.ndim == 2:
            _refuse(bad.any(1), rows, split, f"{name} are not finite: look at that text, or at the teacher")
            fields[name][rows] = values
        else:
            what, layer = TOKEN_FIELDS[name.partition(".")[0]], name.partition(".")[2]
            why = f"{what} of layer {layer} do not fit into float16: leave that layer out of the loss that looks at it"
            _refuse((mask & bad.any(2)).any(1), rows, split, why)
            fields[name][flat[mask]] = values[mask]


def _refuse(bad: NDArray[np.bool_], rows: Ints, split: str, what: str) -> None:
    if bad.any():
        raise TrainingError(f"labels: in {split} example {int(rows[bad][0])} (counted from 0) the teacher's {what}")


def _wait(ready: Any) -> None:
    while not ready():
        time.sleep(0.05)


def _map(folder: Path, split: str, name: str, mode: Literal["r", "r+"] = "r") -> Any:
    path = folder / f"{split}.{name}.npy"
    try:
        found = np.load(path, mmap_mode="r")
        if mode == "r+":  # alone, it would make a file that is too short longer
            found = np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    if mode == "r" and "." in name and hasattr(mmap, "MADV_RANDOM"):
        found._mmap.madvise(mmap.MADV_RANDOM)  # batches are drawn at random: read-ahead fetches what no step wants
    return found


def _refuse_damage(folder: Path, split: str, fields: Mapping[str, NDArray[Any]], examples: int, tokens: int) -> None:
    for name, field in fields.items():
        expected = tokens if "." in name or name == "starts" else examples
        if len(field) != expected:
            raise _damaged(folder / f"{split}.{name}.npy", f"{len(field)} rows instead of {expected}")


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is not what the labels stage wrote ({why}): make it anew, with --fresh labels")


class LabelStore:
    """One split of a finished store, read through memory maps: its memory does not grow with the data.

    Raises ``StoreError`` for a file that is missing, truncated or of another split than the rest.
    """

    def __init__(self, folder: Path, split: str, needs: Needs = LOGITS, heads: int = 0, classes: int = 0) -> None:
        self.fields = {name: _map(folder, split, name) for name in names(needs)}
        self.needs, self.heads, self.classes = needs, heads, classes
        self.examples, tokens, placed = len(next(iter(self.fields.values()))), 0, {}
        if needs.tokens:
            self.starts, self.offsets = (_map(folder, split, name) for name in ("starts", "offsets"))
            tokens, placed = int(self.offsets[-1]), {"starts": self.starts, "offsets": self.offsets[1:]}
            self.longest = int(np.diff(self.offsets).max())
        known = (folder / f"{split}.known.npy").exists()
        self.known: NDArray[np.bool_] | None = _map(folder, split, "known") if known else None
        placed |= {} if self.known is None else {"known": self.known}
        _refuse_damage(folder, split, self.fields | placed, self.examples, tokens)

    def answered(self) -> Ints | None:
        """The rows that have an answer; ``None``: all."""
        given = np.ones(1, np.bool_) if self.known is None else ~np.isnan(self.logits[:, 0])
        return None if given.all() else np.flatnonzero(given)

    @property
    def logits(self) -> NDArray[np.float32]:
        """(N, C), where all are kept."""
        found: NDArray[np.float32] = self.fields["logits"]
        return found

    def all_logits(self) -> Tensor:
        """(N, C) in memory, the cut ones made whole."""
        return self._logits(slice(None))

    def _logits(self, rows: Ints | slice) -> Tensor:
        if self.needs.top is None:
            return torch.from_numpy(np.array(self.logits[rows]))
        top, classes, rest = (torch.from_numpy(np.array(self.fields[n][rows])) for n in ("top", "classes", "rest"))
        return whole(top, classes, rest, self.classes)

    def of(self, tokens: Tokens) -> LabelStore:
        """Itself, if it is of that split; raises ``DataError`` if it holds another number of examples."""
        if self.examples != len(tokens):
            raise DataError(
                f"the label store holds {self.examples} examples and the split {len(tokens)}: rerun the labels stage, "
                "with --fresh labels"
            )
        return self

    def _known(self, rows: Ints) -> Tensor | None:
        if self.known is not None:
            return torch.from_numpy(np.array(self.known[rows]))
        if self.needs.top is None:
            return None
        classes = torch.from_numpy(np.array(self.fields["classes"][rows])).long()
        return torch.zeros(len(rows), self.classes, dtype=torch.bool).scatter(1, classes, True)

    def signal(self, rows: Ints, tokens: Tokens, mask: NDArray[np.bool_], flat: Ints) -> Signal:
        """The teacher's signal for ``rows``, what belongs to tokens (float16) placed at the student's tokens."""
        self.of(tokens)
        where: Any = None
        read_BT: Tensor | None = None
        if self.needs.tokens:
            wanted_BT = np.where(mask, tokens.starts[flat], -1)
            place_BT, read_BT = align(wanted_BT, self.starts, self.offsets, rows, self.longest)
            where = self.offsets[rows][:, None] + place_BT
        read = {n: torch.from_numpy(f[where]) for n, f in self.fields.items() if "." in n}
        hidden = {layer: read[f"hidden.{layer}"] for layer in self.needs.hidden}
        attention = {n: (read[f"query.{n}"], read[f"key.{n}"], read[f"value.{n}"]) for n in self.needs.attention}
        pooled = torch.from_numpy(self.fields["pooled"][rows]) if self.needs.pooled else None
        return Signal(self._logits(rows), hidden, attention, self.heads, pooled, self._known(rows), read_BT)


def align(
    wanted_BT: NDArray[np.int32], starts_P: NDArray[np.int32], offsets: Ints, rows: Ints, longest: int
) -> tuple[Ints, Tensor | None]:
    """For each of a student's tokens, the place among the teacher's tokens of its example that covers its first
    character, (B, T), and which of them the teacher has read, (B, T) bool; ``None``: all.

    ``wanted_BT`` are the first characters, -1 for specials and padding; ``starts_P`` those of all the teacher's tokens,
    of which ``offsets`` say which are an example's. Leading specials pair with the first token, all others with the
    last. Of an example of ``longest`` tokens, at which the teacher cuts, what begins after its last token of text is
    taken for unread, the end of a word that it has read included: where that ends is not known here.
    """
    mask_BP, flat_BP = ragged(offsets, rows)
    starts_BP = np.where(mask_BP, starts_P[flat_BP], -1)
    text_BP, row_B1 = starts_BP >= 0, np.arange(len(rows), dtype=np.int64)[:, None] << 32
    texts_B1 = text_BP.sum(1, keepdims=True)
    first_B1 = np.cumsum(texts_B1, axis=0) - texts_B1
    found_BT = np.searchsorted((row_B1 + starts_BP)[text_BP], row_B1 + wanted_BT, side="right") - 1
    place_Q = np.append(np.nonzero(text_BP)[1], 0)  # one more, for examples without text at the end
    place_BT = np.where(texts_B1 > 0, place_Q[np.maximum(found_BT, first_B1)], 0)
    special_BT, tokens_B1 = wanted_BT < 0, mask_BP.sum(1, keepdims=True)
    leading_BT = np.logical_and.accumulate(special_BT, axis=1)
    unread_BT = (tokens_B1 == longest) & (wanted_BT > starts_BP.max(1, keepdims=True))
    place_BT = np.where(special_BT, np.where(leading_BT, 0, tokens_B1 - 1), place_BT)
    return place_BT, torch.from_numpy(~unread_BT) if unread_BT.any() else None
