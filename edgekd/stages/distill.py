"""The fp32 student: built from the teacher or another backbone, taught from the label store."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from edgekd import assets as asset_cache
from edgekd import spec
from edgekd.distill import loop
from edgekd.distill.checkpoint import save_tensors
from edgekd.distill.record import shape as model_shape
from edgekd.distill.taps import check_exits
from edgekd.models import exits, loading
from edgekd.models import student as student_builder
from edgekd.stages.common import answering, has_model, judging, load_stage_model, read_data, set_lesson, tokenise_splits
from edgekd.store import Context, Stage, read_json, write_json

REVISION = 11
LEARNED, PEERS, TEACHER, ROWS = "learned.safetensors", "peer-{}.safetensors", "teacher.safetensors", "rows.npy"
WHOLE, EXIT = "whole", "exit-{}"
"""The student where an early exit of it is ``model/``; and its other exits, each a folder as that one."""
PEER = 1000
"""Between the seeds of two students that teach each other."""
PEER_NOISE = 0.1
"""Of a matrix's deviation: what is cut from one teacher, whatever the seed, has next to nothing to tell its like."""


def run(
    ctx: Context,
    *,
    task: spec.Task,
    student: spec.Student,
    distill: spec.Distill,
    assets: Stage,
    teacher: Stage,
    labels: Stage | tuple[Stage, ...],
    begin: Stage | None,
    seed: int,
) -> None:
    """Write ``model/``, ``student.json`` (what was kept), ``scores.json`` (validation) and ``history.jsonl``.

    The student is cut from ``teacher``, or is that of ``begin``, a distill stage, and goes on from there. Of one with
    early exits also ``exit-<layer>/``; and ``whole/``, where ``model/`` is one of them.
    """
    data = read_data(task, assets)

    def build(seed: int) -> Any:
        if begin is not None:
            return *load_stage_model(begin, data.labels), read_json(begin.path / "student.json")
        folder = teacher.path / "model"
        if student.source is not None:
            folder = asset_cache.resolve(student.source, progress=ctx.progress)
        torch.manual_seed(seed)  # a backbone gets a fresh head
        big = None
        if student.source is not None or has_model(teacher):
            big = loading.load_classifier(folder, data.labels, finetuned=student.source is None)
        return student_builder.build(student, big, folder, data, task.max_length, seed, ctx.progress)

    model, tokenizer, summary = build(seed)
    tokens = tokenise_splits(tokenizer, data, task.max_length, ("taught", "validation"))
    count = distill.source.students - 1 if isinstance(distill.source, spec.Mutual) else 0
    peers = [differing(build(seed + i * PEER)[0], seed + i * PEER) for i in range(1, count + 1)]
    asked = cache(partial(answering, teacher, data))
    check_exits(distill.losses, model.config.model_type, model.config.num_hidden_layers)
    whole = None
    if distill.exit is not None:
        whole, model = model, exits.shallower(model, distill.exit)
        kept = {"layers": distill.exit, "kept_layers": summary["kept_layers"][: distill.exit]}
        summary |= kept | {"parameters": loading.parameters(model)}
    lesson, learner = set_lesson(ctx, "distill", model, tokens, distill, labels, asked, peers, seed, whole=whole)
    training = loop.fit(
        replace(lesson, autocast=ctx.device == "cuda"),
        epochs=distill.epochs,
        options=distill.optimizer,
        seed=seed,
        out=ctx.out,
        progress=ctx.progress,
    )
    scores = lesson.evaluate()
    judged = f"{scores['score']:.4f}" if "score" in scores else f"loss {scores['validation_loss']:.4f}"
    ctx.progress.log(f"distill: {summary['parameters']:,} parameters, validation {judged}")
    found: dict[str, Any] = {"validation": scores, "training": training}
    classifiers = {n: exits.shallower(learner.model, n, head) for n, head in learner.exits().items()}
    if classifiers:
        deepest = {model_shape(learner.model)["layers"]: learner.model}
        judge = judging(ctx, tokens["validation"], distill, labels)
        found["exits"] = {str(n): judge(f"distill: exit {n}", model) for n, model in (classifiers | deepest).items()}
        said = ", ".join(f"{n}: {row['score']:.4f}" for n, row in found["exits"].items())
        ctx.progress.log(f"distill: validation after each exit's blocks, and all: {said}")
    if learned := learned_beside(lesson.module):
        save_tensors(learned, ctx.out / LEARNED)
    for i, peer in enumerate(peers):
        save_tensors(peer.state_dict(), ctx.out / PEERS.format(i))
    if isinstance(distill.source, spec.Mutual) and distill.source.teacher:
        save_tensors(asked()[0].state_dict(), ctx.out / TEACHER)
    if lesson.rows is not None:
        np.save(ctx.out / ROWS, lesson.rows)
    loading.save_model(model, tokenizer, ctx.out / "model")
    for n, classifier in classifiers.items():
        if n != distill.exit:
            loading.save_model(classifier, tokenizer, ctx.out / EXIT.format(n))
    if whole is not None:
        loading.save_model(whole, tokenizer, ctx.out / WHOLE)
    write_json(ctx.out / "student.json", summary)
    write_json(ctx.out / "scores.json", found)
    loop.clean(ctx.out)


def differing(model: Any, seed: int) -> Any:
    """``model`` with noise in its matrices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight += PEER_NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


def load_whole(distill: Stage, labels: Any) -> Any:
    """The student whose early exit a distill stage left as its ``model/``; ``None`` where that is the student."""
    return load_stage_model(distill, labels, name=WHOLE)[0] if (distill.path / WHOLE).exists() else None


def load_peers(distill: Stage, labels: Any) -> list[Any]:
    """The students that taught the one of a distill stage and learned from it."""
    found = []
    for i in range(len(list(distill.path.glob(PEERS.format("*"))))):
        peer = load_whole(distill, labels) or load_stage_model(distill, labels)[0]
        peer.load_state_dict(load_file(distill.path / PEERS.format(i)))
        found.append(peer)
    return found


def learned_beside(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the losses of a student, and of those that teach it and learn from it, have learned themselves."""
    return {name: value for name, value in module.state_dict().items() if "own" in name.split(".")}


def load_learned(module: torch.nn.Module, distill: Stage) -> None:
    """Go on with what the losses learned in the distill stage, so that QAT starts where it ended."""
    if learned_beside(module):
        module.load_state_dict(module.state_dict() | load_file(distill.path / LEARNED))
