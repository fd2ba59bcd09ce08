"""Text classification: one label per document, scored by accuracy."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.progress import Progress
from edgekd.spec import TextClassification
from edgekd.store import read_json, write_json
from edgekd.tasks import tables
from edgekd.tasks.examples import Examples, join
from edgekd.tasks.sampling import Ints, holdout, stratified
from edgekd.tasks.transfer import elsewhere, windows

SPLITS = ("train", "validation", "test")
SCHEMA = "edgekd.dataset/1"
TEST_SEED = 0
"""Draws a test split that no source has: not the target's seed, so that every seed is scored on the same examples."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """The three splits. A split held out of the training source keeps its ``train/...`` ids.

    ``transfer`` is unlabelled text for the teacher to label, if the task has any. ``uncut_ids`` are those of the
    training split before a limit cut it; ``None`` if nothing was cut, or once read back.
    """

    train: Examples
    validation: Examples
    test: Examples
    labels: tuple[str, ...]
    licence: str | None = None
    uncut_ids: list[str] | None = None
    transfer: Examples | None = None

    @property
    def splits(self) -> dict[str, Examples]:
        """What there is, by name."""
        found = {name: getattr(self, name) for name in SPLITS}
        return found if self.transfer is None else found | {"transfer": self.transfer}

    @property
    def taught(self) -> Examples:
        """What a student is taught on: the training split, and behind it the transfer set."""
        return join(self.train, self.transfer)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the label names and every id, label and text, in order."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name, split in self.splits.items():
            for record in zip(split.ids, split.labels.tolist(), split.texts, strict=True):
                digest.update(json.dumps([name, *record]).encode() + b"\n")
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Examples per split."""
        return {name: len(split) for name, split in self.splits.items()}


# ---------------------------------------------------------------------------------------------------------------- load


def load(task: TextClassification, seed: int, progress: Progress | None = None) -> Dataset:
    """Read the task's sources, hold out test and validation splits it lacks, and cut each split to ``task.limit``.

    Integer labels are positions in ``task.labels`` where those are given as words, else names. A hold-out depends on
    the training source only, and validation's on ``seed``; it has one example at least of every class that has two.
    What is left for training has no text that stands in a held-out test split. A limit keeps one
    at least of every class, even where that is more examples. Raise ``DataError`` for a missing column, a text that is
    no string, a label that is missing or unknown, or an empty split; ``AssetError`` when a source cannot be had.
    """
    sources = {"train": task.train, "validation": task.validation, "test": task.test}
    found = {name: _read(name, locator, task, progress) for name, locator in sources.items() if locator is not None}
    labels = task.labels or _sorted_names(found["train"][2])
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise DataError(f"a classification needs two labels or more, all different; these are {', '.join(labels)}")
    positions = task.labels is not None and not all(label.lstrip("-").isdecimal() for label in labels)
    splits = {
        n: Examples(ids, texts, _index(ids, names, labels, positions)) for n, (ids, texts, names) in found.items()
    }
    if "test" not in splits:
        splits |= _hold_out("test", splits["train"], task.test_fraction, TEST_SEED)
        seen = set(splits["test"].texts)
        splits["train"] = splits["train"].take(
            np.array([row for row, text in enumerate(splits["train"].texts) if text not in seen], np.int64)
        )
    if "validation" not in splits:
        splits |= _hold_out("validation", splits["train"], task.validation_fraction, seed)
    uncut_ids = None
    if task.limit is not None:
        uncut_ids = splits["train"].ids
        for name, split in splits.items():
            count = max(task.limit, len(np.unique(split.labels)))
            splits[name] = split.take(stratified(split.labels, count, seed))
    return Dataset(splits["train"], splits["validation"], splits["test"], labels, task.licence, uncut_ids)


def with_transfer(data: Dataset, task: TextClassification, seed: int, progress: Progress | None = None) -> Dataset:
    """``data`` and the unlabelled text that ``task`` names: windows of training texts, then text from elsewhere.

    No text from elsewhere stands in any split, as a limit has cut it; that limit cuts this, too. Raises as
    ``transfer.elsewhere`` does.
    """
    more = [] if task.transfer_words is None else [windows(data.train, task.transfer_words)]
    if task.transfer is not None:
        known = [text for split in (data.train, data.validation, data.test) for text in split.texts]
        unlabelled = elsewhere(task.transfer, task, known, progress)
        count = len(unlabelled) if task.limit is None else task.limit
        more.append(unlabelled.take(stratified(unlabelled.labels, count, seed)))
    return replace(data, transfer=join(*more))


def _hold_out(name: str, whole: Examples, fraction: float, seed: int) -> dict[str, Examples]:
    marked = holdout(whole.labels, fraction, seed)
    return {"train": whole.take(np.flatnonzero(~marked)), name: whole.take(np.flatnonzero(marked))}


def _read(
    name: str, locator: str, task: TextClassification, progress: Progress | None
) -> tuple[list[str], list[str], list[str | int]]:
    """Ids, texts and raw labels of one source, each a checked value."""
    table = tables.read(locator, (task.text_column, task.label_column), progress, task.encoding)
    ids = [f"{name}/{row}" for row in table.rows]
    texts, labels = table.cells[task.text_column], table.cells[task.label_column]
    if not ids:
        raise DataError(f"the {name} split is empty: {locator} holds no labelled rows")
    for place, text, label in zip(ids, texts, labels, strict=True):
        if not tables.is_text(text):
            raise DataError(
                f"{place}: column {task.text_column!r} of {locator} holds {text!r}, which is no text; mend it"
            )
        if label == "" or isinstance(label, bool) or not isinstance(label, str | int) or not tables.is_text(str(label)):
            raise DataError(
                f"{place}: column {task.label_column!r} of {locator} holds {label!r}; a label is a name or an integer"
            )
    return ids, texts, labels


def _sorted_names(labels: Iterable[str | int]) -> tuple[str, ...]:
    """The names in use; integers in their own order, before any strings."""
    return tuple(dict.fromkeys(str(name) for name in sorted(set(labels), key=lambda x: (isinstance(x, str), x))))


def _index(ids: list[str], names: list[str | int], labels: tuple[str, ...], positions: bool) -> Ints:
    """Label indices. An integer is a position in ``labels``, or (without ``positions``) itself a name."""
    index: dict[str | int, int] = {label: place for place, label in enumerate(labels)}
    if positions:
        index |= {place: place for place in range(len(labels))}
    else:
        names = [str(name) for name in names]
    unknown = Counter(name for name in names if name not in index)
    if unknown:
        name = next(iter(unknown))
        near = difflib.get_close_matches(str(name), labels, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        split, first = ids[0].partition("/")[0], ids[names.index(name)]
        raise DataError(
            f"the {split} split has {unknown[name]} rows with the unknown label {name!r}, first {first}{hint}; "
            f"{len(unknown)} unknown in all. Known are {', '.join(labels)}. Remove the rows, or name every label in "
            "the task's `labels`."
        )
    return np.array([index[name] for name in names], np.int64)


# ------------------------------------------------------------------------------------------------------------- sampling


def draw_calibration(dataset: Dataset, count: int, seed: int) -> tuple[str, ...]:
    """Draw ids of the training split, stratified, never of what was held out for validation.

    Raise ``DataError`` when it has fewer than ``count`` examples.
    """
    if not 0 < count <= len(dataset.train):
        raise DataError(f"cannot draw {count} calibration examples from {len(dataset.train)} training examples")
    return tuple(dataset.train.ids[row] for row in stratified(dataset.train.labels, count, seed))


# ------------------------------------------------------------------------------------------------------- write and read


def write(dataset: Dataset, out: Path) -> None:
    """Write ``data/<split>.parquet`` (id, text: string; label: int32) and ``dataset.json`` into an unfinished stage.

    Of a training split that was cut, ``data/uncut.parquet`` has all ids.
    """
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([("id", pyarrow.string()), ("text", pyarrow.string()), ("label", pyarrow.int32())])
    (out / "data").mkdir(parents=True, exist_ok=True)
    for name, split in dataset.splits.items():
        table = pyarrow.table([split.ids, split.texts, split.labels.astype(np.int32)], schema=schema)
        parquet.write_table(table, out / "data" / f"{name}.parquet", compression="zstd")
    if dataset.uncut_ids is not None:
        ids = pyarrow.table({"id": dataset.uncut_ids})
        parquet.write_table(ids, out / "data" / "uncut.parquet", compression="zstd")
    head = {"schema": SCHEMA, "labels": dataset.labels, "fingerprint": dataset.fingerprint, "counts": dataset.counts}
    write_json(out / "dataset.json", head | {"licence": dataset.licence})


def read(stage_path: Path) -> Dataset:
    """Read what ``write`` wrote. Raise ``DataError`` when it is missing, altered or of another version."""
    import pyarrow
    from pyarrow import parquet

    try:
        head = read_json(stage_path / "dataset.json")
        splits: dict[str, Any] = {}
        for name in head["counts"]:
            columns = parquet.ParquetFile(stage_path / "data" / f"{name}.parquet").read()
            ids, texts, labels = columns["id"].to_pylist(), columns["text"].to_pylist(), columns["label"].to_numpy()
            splits[name] = Examples(ids, texts, labels.astype(np.int64))
        dataset = Dataset(**splits, labels=tuple(head["labels"]), licence=head["licence"])
        intact = head["schema"] == SCHEMA and head["fingerprint"] == dataset.fingerprint
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{stage_path} holds no readable data set ({error}); delete that folder and run again"
        ) from error
    if not intact:
        raise DataError(f"{stage_path} is not the data set that was written there; delete that folder and run again")
    return dataset


def training_ids(stage_path: Path) -> list[str]:
    """Return the ids of the training split that ``write`` wrote, and of what a limit cut off it."""
    from pyarrow import parquet

    cut, whole = (stage_path / "data" / f"{name}.parquet" for name in ("uncut", "train"))
    ids: list[str] = parquet.ParquetFile(cut if cut.exists() else whole).read(["id"])["id"].to_pylist()
    return ids


# --------------------------------------------------------------------------------------------------------------- scores


def score(predictions: NDArray[Any], labels: Ints) -> float:
    """Return the accuracy, 0 to 1, of ``predictions``: class indices (N,), or logits (N, C) whose largest counts."""
    return float((_classes(predictions, labels) == labels).mean())


def _classes(predictions: NDArray[Any], labels: Ints) -> NDArray[Any]:
    found = np.asarray(predictions)
    found = found.argmax(1) if found.ndim == 2 else found
    if found.shape != labels.shape or not len(labels):
        raise DataError(f"cannot score predictions of shape {np.shape(predictions)} against {len(labels)} labels")
    return found
