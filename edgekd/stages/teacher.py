"""The teacher: taken as it comes or fine-tuned on the task, then scored on validation and, once, on test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgekd import assets as asset_cache
from edgekd import spec
from edgekd.distill import evaluate, head, loop
from edgekd.distill.learner import Learner
from edgekd.errors import DataError
from edgekd.models import loading, lora
from edgekd.stages import black_box
from edgekd.stages.backbone import fetched
from edgekd.stages.common import read_data, tokenise_splits
from edgekd.store import Context, Stage, write_json

REVISION = 4


def run(ctx: Context, *, task: spec.Task, teacher: spec.Teacher | spec.BlackBox, assets: Stage, seed: int) -> None:
    """Write ``model/`` (a Hugging Face folder), ``scores.json`` and, if it was trained, ``history.jsonl``.

    Of a black box: its scores, and its answers. Raises ``DataError`` for a teacher taken as it comes whose labels have
    no names and seem to stand in another order.
    """
    data = read_data(task, assets)
    if isinstance(teacher, spec.BlackBox):
        return black_box.ask(ctx, teacher, data)
    model, tokenizer = fetched(ctx, teacher, data.labels, seed)
    if teacher.finetune is not None and teacher.finetune.train == "lora":
        lora.attach(model, teacher.finetune.rank, teacher.finetune.alpha)
    model.to(ctx.device)
    tokens = tokenise_splits(tokenizer, data, task.max_length)

    def judge(split: str) -> dict[str, float]:
        found = evaluate.logits(
            model, tokens[split], autocast=ctx.bf16, progress=ctx.progress, name=f"teacher: scoring {split}"
        )
        if teacher.finetune is None and split == "validation":
            _check_order(found.argmax(1), tokens[split].labels, data.labels, teacher)
        return evaluate.compare(found, tokens[split].labels, None)

    training = None
    if teacher.finetune is not None and teacher.finetune.train == "head":
        device = torch.device(ctx.device)
        training = head.fit(model, tokens, out=ctx.out, device=device, bf16=ctx.bf16, progress=ctx.progress)
    elif teacher.finetune is not None:
        training = loop.fit(
            loop.Task(
                "teacher",
                Learner(model, (spec.CE(),)),
                tokens["train"],
                None,
                lambda: judge("validation"),
                autocast=ctx.bf16,
            ),
            epochs=teacher.finetune.epochs,
            options=teacher.finetune.optimizer,
            seed=seed,
            out=ctx.out,
            progress=ctx.progress,
        )
        lora.merge(model)
    if training is not None and teacher.finetune is not None:
        training["train"] = teacher.finetune.train
    scores = {split: judge(split) for split in ("validation", "test")}
    ctx.progress.log(f"teacher: validation {scores['validation']['score']:.4f}, test {scores['test']['score']:.4f}")
    summary = {"parameters": loading.parameters(model), "model_type": model.config.model_type, "training": training}
    loading.save_model(model, tokenizer, ctx.out / "model")
    write_json(ctx.out / "scores.json", scores | summary)
    loop.clean(ctx.out)
    head.clean(ctx.out)


def _check_order(answers_N: Any, labels_N: Any, names: Sequence[str], teacher: spec.Teacher) -> None:
    order = other_order(answers_N, labels_N, len(names))
    if order is None:
        return
    if loading.names_labels(asset_cache.resolve(teacher.source, also=teacher.files), teacher.gguf_file):
        return  # they were compared when it was loaded: it errs, and no order is to blame
    given, better = (int((place[answers_N] == labels_N).sum()) for place in (np.arange(len(names)), np.array(order)))
    raise DataError(
        f"the labels of the teacher {teacher.source} have no names, and seem to be {[names[i] for i in order]}, not "
        f"the data's {list(names)}: of {len(labels_N)} validation examples {better} are right by that order, {given} "
        "by the data's. Name them in the model's config.json (id2label), or give task.labels in the model's order"
    )


def other_order(answers_N: Any, labels_N: Any, classes: int) -> tuple[int, ...] | None:
    """The label that each answer seems to stand for, where that is clearly another one; ``None`` otherwise.

    Answers and labels are paired by how often they meet, the most frequent pairs first. Clearly: that order makes a
    quarter more of the examples right, and more than answers that know nothing, each as frequent as here, would in any
    order: by Chernoff's bound, summed over all orders, they would one time in a hundred.
    """
    counts = np.zeros((classes, classes))
    np.add.at(counts, (answers_N, labels_N), 1)
    left = 2 * counts + np.eye(classes)  # of equals, the data's order
    order = np.empty(classes, int)
    for _ in range(classes):
        answer, label = divmod(int(left.argmax()), classes)
        order[answer] = label
        left[answer, :] = left[:, label] = -1
    examples, right = len(labels_N), float(counts[np.arange(classes), order].sum())
    luck = float(np.sort(counts.sum(0)) @ np.sort(counts.sum(1)) / examples)  # the mean, in the luckiest order
    if right <= luck or 4 * (right - counts.trace()) < examples:
        return None
    wrong = examples - right
    surprise = right * math.log(right / luck) + (wrong * math.log(wrong / (examples - luck)) if wrong else 0.0)
    return tuple(order.tolist()) if surprise > math.lgamma(classes + 1) + math.log(100) else None
