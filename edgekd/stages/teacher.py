"""The teacher: taken as it comes or fine-tuned on the task, then scored on validation and, once, on test."""

from __future__ import annotations

import torch

from edgekd import spec
from edgekd.distill import evaluate, head, loop
from edgekd.distill.learner import Learner
from edgekd.models import loading, lora
from edgekd.stages import black_box
from edgekd.stages.backbone import fetched
from edgekd.stages.common import read_data, tokenise_splits
from edgekd.store import Context, Stage, write_json

REVISION = 4


def run(ctx: Context, *, task: spec.Task, teacher: spec.Teacher | spec.BlackBox, assets: Stage, seed: int) -> None:
    """Write ``model/`` (a Hugging Face folder), ``scores.json`` and, if it was trained, ``history.jsonl``.

    Of a black box: its scores, and its answers.
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
