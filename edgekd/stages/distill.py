"""The fp32 student: built from the teacher, taught from the label store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from safetensors.torch import load_file

from edgekd import spec
from edgekd.distill import loop
from edgekd.distill.checkpoint import save_tensors
from edgekd.distill.learner import Learner
from edgekd.models import loading
from edgekd.models import student as student_builder
from edgekd.stages.common import answering, load_stage_model, read_data, set_lesson, tokenise_splits
from edgekd.store import Context, Stage, write_json

REVISION = 7
LEARNED, PEERS, ROWS = "learned.safetensors", "peer-{}.safetensors", "rows.npy"
PEER = 1000
"""Between the seeds of two students that teach each other."""


def run(
    ctx: Context,
    *,
    task: spec.Task,
    student: spec.Student,
    distill: spec.Distill,
    assets: Stage,
    teacher: Stage,
    labels: Stage | tuple[Stage, ...],
    seed: int,
) -> None:
    """Write ``model/``, ``student.json`` (what was kept), ``scores.json`` (validation) and ``history.jsonl``."""
    data = read_data(task, assets)

    def build(seed: int) -> Any:
        big, _ = load_stage_model(teacher, data.labels)
        return student_builder.build(student, big, teacher.path / "model", data, task.max_length, seed, ctx.progress)

    model, tokenizer, summary = build(seed)
    tokens = tokenise_splits(tokenizer, data, task.max_length, ("taught", "validation"))
    count = distill.source.students - 1 if isinstance(distill.source, spec.Mutual) else 0
    peers = [build(seed + (i + 1) * PEER)[0] for i in range(count)]
    asked = partial(answering, teacher, data, task)
    lesson, learner = set_lesson(ctx, "distill", model, tokens, distill, labels, asked, peers, seed)
    training = loop.fit(
        replace(lesson, autocast=ctx.device == "cuda"),
        epochs=distill.epochs,
        options=distill.optimizer,
        seed=seed,
        out=ctx.out,
        progress=ctx.progress,
    )
    scores = lesson.evaluate()
    ctx.progress.log(f"distill: {summary['parameters']:,} parameters, validation {scores['score']:.4f}")
    if learned := learner.own.state_dict():
        save_tensors(learned, ctx.out / LEARNED)
    for i, peer in enumerate(peers):
        save_tensors(peer.state_dict(), ctx.out / PEERS.format(i))
    if lesson.rows is not None:
        np.save(ctx.out / ROWS, lesson.rows)
    loading.save_model(model, tokenizer, ctx.out / "model")
    write_json(ctx.out / "student.json", summary)
    write_json(ctx.out / "scores.json", {"validation": scores, "training": training})
    loop.clean(ctx.out)


def load_peers(distill: Stage, labels: Any) -> list[Any]:
    """The students that taught the one of a distill stage and learned from it."""
    found = []
    for i in range(len(list(distill.path.glob(PEERS.format("*"))))):
        peer, _ = load_stage_model(distill, labels)
        peer.load_state_dict(load_file(distill.path / PEERS.format(i)))
        found.append(peer)
    return found


def load_learned(learner: Learner, distill: Stage) -> None:
    """Go on with what the losses learned in the distill stage, so that QAT starts where it ended."""
    if learner.own.state_dict():
        learner.own.load_state_dict(load_file(distill.path / LEARNED))
