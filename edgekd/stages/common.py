"""What several stages do alike: read the data that ``assets`` wrote, tokenise it, load what an earlier stage saved."""

from __future__ import annotations

from typing import Any

from edgekd import spec, tasks
from edgekd.distill.data import Tokens, tokenise
from edgekd.models import loading
from edgekd.store import Stage, read_json

SPLITS = ("train", "validation", "test")


def read_data(task: spec.Task, assets: Stage) -> Any:
    """The data set that the ``assets`` stage wrote."""
    return tasks.TASKS[task.kind].read(assets.path)


def tokenise_splits(
    tokenizer: Any, pad_id: int, data: Any, max_length: int, splits: tuple[str, ...] = SPLITS
) -> dict[str, Tokens]:
    """Each split as ragged token arrays."""
    return {s: tokenise(tokenizer, getattr(data, s).texts, getattr(data, s).labels, max_length, pad_id) for s in splits}


def load_stage_model(stage: Stage, labels: Any, attention: str | None = None) -> tuple[Any, Any]:
    """The classifier and the tokenizer in a stage's ``model/`` folder."""
    folder = stage.path / "model"
    return loading.load_classifier(folder, labels, finetuned=True, attention=attention), loading.load_tokenizer(folder)


def teacher_shape(labels: Stage) -> dict[str, int] | None:
    """Layers and width of the teacher whose hidden states are in the label store; None if there are none."""
    index = read_json(labels.path / "index.json")
    return {"layers": index["teacher_layers"], "hidden": index["teacher_hidden"]} if index["layers"] else None
