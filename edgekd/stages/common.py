"""What several stages do alike: read the data that ``assets`` wrote, tokenise it, load a model, set up its lessons."""

from __future__ import annotations

from typing import Any

import torch

from edgekd import spec, tasks
from edgekd.distill import evaluate, loop
from edgekd.distill.data import Tokens, tokenise
from edgekd.distill.labels import LabelStore
from edgekd.distill.learner import Learner
from edgekd.distill.taps import stored
from edgekd.models import loading
from edgekd.store import Context, Stage, read_json

SPLITS = ("train", "validation", "test")


def read_data(task: spec.Task, assets: Stage) -> Any:
    """The data set that the ``assets`` stage wrote."""
    return tasks.TASKS[task.kind].read(assets.path)


def tokenise_splits(tokenizer: Any, data: Any, max_length: int, splits: tuple[str, ...] = SPLITS) -> dict[str, Tokens]:
    """Each split as ragged token arrays, by a tokenizer of transformers."""
    fast, pad_id = tokenizer.backend_tokenizer, tokenizer.pad_token_id
    parts = {name: getattr(data, name) for name in splits}
    return {name: tokenise(fast, part.texts, part.labels, max_length, pad_id) for name, part in parts.items()}


def load_stage_model(stage: Stage, labels: Any, attention: str | None = None) -> tuple[Any, Any]:
    """The classifier and the tokenizer in a stage's ``model/`` folder."""
    folder = stage.path / "model"
    return loading.load_classifier(folder, labels, finetuned=True, attention=attention), loading.load_tokenizer(folder)


def set_lesson(
    ctx: Context, name: str, model: Any, tokens: dict[str, Tokens], distill: spec.Distill, labels: Stage
) -> tuple[loop.Task, Learner]:
    """A student's training on the stored teacher's answers, judged on validation; and the student under its losses.

    The same in fp32 and under fake-quantization, whose matrix products must not be cast to bf16.
    """
    index = read_json(labels.path / "index.json")
    shape = index["teacher"]
    learner = Learner(model, distill.losses, shape, distill.balance).to(torch.device(ctx.device))
    truth = LabelStore(labels.path, "validation").logits

    def judge() -> dict[str, float]:
        found = evaluate.logits(model, tokens["validation"], progress=ctx.progress, name=f"{name}: scoring validation")
        return evaluate.compare(found, tokens["validation"].labels, truth)

    teacher = LabelStore(labels.path, "taught", stored(index["taps"], shape["layers"]), shape["heads"])
    return loop.Task(name, learner, tokens["taught"], teacher, judge), learner
