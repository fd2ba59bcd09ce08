"""What several stages do alike: read the data, tokenise it, load a model, set up its lessons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from edgekd import spec, tasks
from edgekd.distill import evaluate, live, loop, select, several
from edgekd.distill.data import Ints, Tokens, tokenise
from edgekd.distill.learner import Learner
from edgekd.distill.record import shape as model_shape
from edgekd.distill.taps import LOGITS, VALIDATION, needs, stored
from edgekd.models import loading
from edgekd.spec.losses import needs_no_teacher
from edgekd.store import MANIFEST, Context, Stage, read_json, stages

SPLITS = ("train", "validation", "test")


def read_data(task: spec.Task, assets: Stage) -> Any:
    """The data set that ``assets``, or another stage in its place, wrote."""
    return tasks.TASKS[task.kind].read(assets.path)


def tokenise_splits(tokenizer: Any, data: Any, max_length: int, splits: tuple[str, ...] = SPLITS) -> dict[str, Tokens]:
    """Each split as ragged token arrays, by a tokenizer of transformers."""
    fast, pad_id = tokenizer.backend_tokenizer, tokenizer.pad_token_id
    parts = {name: getattr(data, name) for name in splits}
    return {name: tokenise(fast, part.texts, part.labels, max_length, pad_id) for name, part in parts.items()}


def load_stage_model(stage: Stage, labels: Any, attention: str | None = None, name: str = "model") -> tuple[Any, Any]:
    """The classifier and the tokenizer in a stage's ``model/`` folder, or that of another name."""
    folder = stage.path / name
    return loading.load_classifier(folder, labels, finetuned=True, attention=attention), loading.load_tokenizer(folder)


def has_model(teacher: Stage) -> bool:
    """Whether there is a model to be asked or cut: a black box leaves its answers alone."""
    return (teacher.path / "model").is_dir()


def longest(stage: Stage) -> int:
    """How many tokens the model of a stage reads: those of the task that it was made for, whoever asks it."""
    return int(read_json(stage.path / MANIFEST)["inputs"]["task"]["max_length"])


def answering(stage: Stage, data: Any, learned: Path | None = None) -> tuple[Any, Tokens]:
    """The model of a stage, to be asked, and what students are taught on by its tokenizer.

    ``learned`` is the file, if there is one, of what it has become since.
    """
    model, tokenizer = load_stage_model(stage, data.labels)
    if learned is not None and learned.exists():
        model.load_state_dict(load_file(learned))
    return model, tokenise_splits(tokenizer, data, longest(stage), ("taught",))["taught"]


def judging(
    ctx: Context, tokens: Tokens, distill: spec.Distill, labels: Stage | tuple[Stage, ...]
) -> Callable[[str, Any], dict[str, float]]:
    """``judge(name, model)``: how a model answers on validation, beside the labels and the stored teachers.

    Their answers are read now, once, so that a store of other data is refused before anything is trained.
    """
    truth = several.read([stage.path for stage in stages(labels)], "validation", distill.combine).of(tokens)
    logits, known = truth.logits, truth.known

    def judge(name: str, model: Any) -> dict[str, float]:
        found = evaluate.logits(model, tokens, progress=ctx.progress, name=f"{name}: scoring validation")
        return evaluate.compare(found, tokens.labels, logits, known)

    return judge


def set_lesson(
    ctx: Context,
    name: str,
    student: Any,
    tokens: dict[str, Tokens],
    distill: spec.Distill,
    labels: Stage | tuple[Stage, ...],
    teacher: Callable[[], tuple[Any, Tokens]],
    peers: Sequence[Any],
    seed: int,
    rows: Ints | None = None,
    whole: Any = None,
) -> tuple[loop.Task, Learner]:
    """A student's training under the losses of ``distill``, judged on validation; and the student under them.

    ``teacher()`` gives the teacher and the taught examples by its tokenizer, and is called only where it answers live;
    ``peers`` are the other students, where these teach each other; ``rows`` the chosen examples, where they are known
    already; ``whole`` is who is taught, where the student is an early exit of it and shares its blocks. Judged against
    the stored teacher where that one teaches (by the losses, where it was asked on validation for what they look at),
    else by score; of its answers only what the losses look at is read. Of several teachers ``labels`` holds all stores,
    and the student is taught and judged by their combined answers. The same in fp32 and under quantization, whose
    matrix products must not be cast to bf16.
    """
    folders, device = [stage.path for stage in stages(labels)], torch.device(ctx.device)
    index = read_json(folders[0] / "index.json")
    taught, source, shape = student if whole is None else whole, distill.source, index["teacher"]
    if isinstance(source, spec.Average) or peers:
        shape = model_shape(taught)
    shipped = None if whole is None else student
    learner = Learner(taught, distill.losses, shape, distill.balance, shipped).to(device)
    wanted = needs(distill.losses, model_shape(taught)["layers"], shape["layers"], 1)
    judge = judging(ctx, tokens["validation"], distill, labels)
    lesson = loop.Task(name, learner, tokens["taught"], None, partial(judge, name, student))
    if not isinstance(source, spec.Stored | spec.Live) or all(map(needs_no_teacher, distill.losses)):
        lesson = replace(lesson, rank=lambda result: result["score"])
    if isinstance(source, spec.Stored):
        held = stored(index["taps"], shape["layers"], shape["classes"])
        distances = distill.select is not None and distill.select.method == "diversity"
        wanted = replace(wanted, pooled=wanted.pooled or distances, top=held.top)
        store = several.read(folders, "taught", distill.combine, wanted, shape["heads"], shape["classes"])
        store.of(tokens["taught"])
        if VALIDATION in index["taps"]:
            answers = several.read(folders, "validation", distill.combine, wanted, shape["heads"], shape["classes"])
            lesson = replace(
                lesson,
                evaluate=lambda: {"validation_loss": evaluate.loss(learner, tokens["validation"], answers)},
                rank=lambda result: -result["validation_loss"],
            )
        if distill.select is not None and rows is None:
            own = partial(evaluate.logits, taught, tokens["taught"], progress=ctx.progress, name=f"{name}: choosing")
            rows = select.rows(distill.select, store, own, seed)
        return replace(lesson, teacher=store, rows=store.answered() if rows is None else rows), learner
    if isinstance(source, spec.Live):
        model, its_tokens = teacher()
        return replace(lesson, teacher=live.LiveTeacher(model, its_tokens, wanted, device, ctx.bf16)), learner
    if isinstance(source, spec.Average):
        averaged = live.SelfTaught(learner, source.decay).to(device)
        return replace(lesson, module=averaged, before_step=lambda step, last: averaged.follow()), learner
    others = [Learner(peer, distill.losses, shape, distill.balance) for peer in peers]
    if source.teacher:
        model, its_tokens = teacher()
        asked = live.LiveTeacher(model, its_tokens, LOGITS if peers else wanted, device, ctx.bf16, learns=True)
        lesson = replace(lesson, teacher=asked, rates=((model, source.teacher_rate),))
        others.append(Learner(model, (spec.CE(), spec.KL())))
    return replace(lesson, module=live.Cohort([learner, *others]).to(device)), learner
