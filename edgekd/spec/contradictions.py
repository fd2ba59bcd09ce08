"""What in how a target's student is taught contradicts something else there; the rest is in ``edgekd.checks``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgekd.spec import blackbox
from edgekd.spec.losses import CE, DIST, DKD, JS, KL, Exits, LogitMSE, PartialKL, ReverseKL, needs_no_teacher
from edgekd.spec.sources import Average, Mutual
from edgekd.spec.training import Finetune

ANSWERS = (KL, ReverseKL, JS, CE, LogitMSE, DKD, DIST, PartialKL)
"""Losses on a teacher's answers (``CE`` where its labels are the teacher's)."""

if TYPE_CHECKING:
    from edgekd.spec import Optimizer, Student, Target


def of_teaching(target: Target) -> Iterator[str]:
    """Students, losses, exits, who teaches and is fine-tuned how, what comes before the task."""
    student, task, distill = target.student, target.task, target.distill
    learners = {"student": student, **_numbered("assistants", target.assistants)}
    for path, learner in learners.items():
        yield from _student(path, learner, learner.reading(task).max_length)
    yield from _teachers(target)
    yield from blackbox.contradictions(target)
    for loss in distill.losses:
        yield from _loss(loss, {"distill": distill.optimizer, "quant": target.quant.optimizer})
    layers = [layer for loss in distill.losses if isinstance(loss, Exits) for layer in loss.at]
    if len(set(layers)) < len(layers):
        yield f"distill.losses: Exits name a layer twice, of {layers}: one exit a layer"
    if distill.exit is not None and distill.exit not in layers:
        yield f"distill.exit {distill.exit} is not among the exits {layers}: add Exits(at=({distill.exit},)) to losses"
    if distill.exit is not None and (target.assistants or distill.generations > 1):
        yield "distill.exit leaves a student that nobody goes on from: remove assistants and generations"
    if isinstance(distill.source, Mutual) and distill.source.students == 1 and not distill.source.teacher:
        yield "distill.source Mutual(students=1) leaves nobody to learn from: raise students, or set teacher=True"
    yield from _idle(target)
    for path, teacher in {"teacher": target.teacher, **_numbered("co_teachers", target.co_teachers)}.items():
        yield from _finetune(path, getattr(teacher, "finetune", None))
    yield from _phases(target)


def _numbered(path: str, several: Iterable[Any]) -> dict[str, Any]:
    return {f"{path}[{i}]": one for i, one in enumerate(several)}


def _finetune(path: str, finetune: Finetune | None) -> Iterator[str]:
    usual = Finetune()
    if finetune is None or finetune.train == "lora":
        return
    if (finetune.rank, finetune.alpha) != (usual.rank, usual.alpha):
        yield f"{path}.finetune.rank and alpha are for train 'lora', not {finetune.train!r}: remove them"
    if finetune.train == "head" and finetune.dropout is not None:
        yield f"{path}.finetune.dropout changes nothing in a backbone that stands still (train 'head'): remove it"


def _teachers(target: Target) -> Iterator[str]:
    """Where the answers come from, and how those of several teachers become one."""
    source = type(target.distill.source).__name__
    if source != "Stored" and (target.assistants or target.distill.generations > 1):
        yield f"distill.source {source} leaves nothing for assistants or earlier generations to teach: remove either"
    if target.distill.select is not None and source != "Stored":
        yield "distill.select chooses by the stored teacher's answers: leave distill.source as it is"
    combine, teachers = target.distill.combine, 1 + len(target.co_teachers)
    if target.co_teachers and source != "Stored":
        yield f"co_teachers answer into label stores, and distill.source {source} reads none: remove either"
    if teachers == 1 and (combine.method, combine.weights) != ("mean", ()):
        yield "distill.combine makes one answer of several teachers' and there is one: add co_teachers, or remove it"
    elif len(combine.weights) != (teachers if combine.method == "weights" else 0):
        yield (
            f"distill.combine {combine.method!r} with {len(combine.weights)} weights for {teachers} teachers: give "
            "'weights' one for each, target.teacher first, and no other method any"
        )
    if target.distill.relabel == "best" and target.distill.generations == 1:
        yield "distill.relabel 'best' chooses whose answers teach the next generation: raise distill.generations"
    if target.distill.relabel == "best" and target.co_teachers:
        yield "distill.relabel 'best' chooses one to answer, and co_teachers answer together: remove either"


def _idle(target: Target) -> Iterator[str]:
    """What a target asks for that none of its losses would notice."""
    distill = target.distill
    looking = [loss for loss in distill.losses if not needs_no_teacher(loss)]
    teachers = {
        "distill.source": isinstance(distill.source, Average | Mutual),
        "distill.generations": distill.generations > 1,
        "distill.augment": distill.augment is not None,
    }
    for name, asked in teachers.items():
        if asked and not looking:
            yield f"{name} changes nothing: no loss looks at a teacher; add one to distill.losses"
    if isinstance(target.teacher, blackbox.BlackBox) and not looking:
        yield "teacher is asked, and may be paid, and no loss looks at its answers: add PartialKL to distill.losses"
    if target.co_teachers and not any(isinstance(loss, ANSWERS) for loss in looking):
        yield "co_teachers give answers, and no loss looks at any: add KL, or another loss on answers"


def _student(path: str, student: Student, longest: int) -> Iterator[str]:
    if student.config is not None and (student.layers, student.hidden, student.heads, student.ffn) != (None,) * 4:
        yield f"{path}: give either a config or layers/hidden/heads/ffn, not both"
    if student.config is not None and not student.config.get("model_type"):
        yield f"{path}.config needs a model_type, e.g. {{'model_type': 'distilbert', ...}}"
    if student.hidden is not None and student.heads is not None and student.hidden % student.heads:
        yield f"{path}.hidden {student.hidden} is not divisible by {path}.heads {student.heads}"
    if student.positions is not None and student.positions < longest:
        yield f"{path}.positions {student.positions} is below the {longest} tokens that it reads (max_length)"


def _phases(target: Target) -> Iterator[str]:
    """What a target says of its texts and of the time before the task that contradicts something else in it."""
    task, distill, source = target.task, target.distill, target.distill.source
    augment, general = distill.augment, distill.general
    locators = (task.transfer, general and general.text)
    if task.transfer_column is not None and not any(locators):
        yield "task.transfer_column is a column of task.transfer or distill.general.text: name one of these, too"
    others = target.co_teachers or any(student.source for student in target.learners)
    if augment is not None and augment.mask and others:
        yield "distill.augment masks by the teacher's own token, which other tokenizers read as text: set mask=0"
    if augment is not None and not 0 < augment.mask + augment.replace <= 1:
        yield (
            f"distill.augment masks {augment.mask:g} and replaces {augment.replace:g} of the words: "
            "the two must be above 0 and at most 1 together"
        )
    if general is None:
        return
    if target.assistants:
        yield "distill.general begins with a student cut from the teacher, assistants with another: remove either"
    if isinstance(source, Mutual) and source.students > 1:
        yield "distill.general gives one student, and distill.source Mutual teaches several of their own: remove either"
    for loss in general.losses:
        yield from _loss(loss, {"distill.general": general.optimizer})


def _loss(loss: Any, optimizers: Mapping[str, Optimizer]) -> Iterator[str]:
    """What in a loss contradicts itself, or the batches of the trainings that it is in."""
    name, group = type(loss).__name__, getattr(loss, "group", None)
    ramps = {field: value for field, value in vars(loss).items() if hasattr(value, "until")}
    for field, ramp in ramps.items():
        if ramp.begin >= ramp.until:
            yield f"{name}.{field}: a ramp must begin ({ramp.begin}) before it ends ({ramp.until})"
        if field == "temperature" and min(ramp.start, ramp.end) <= 0:
            yield f"{name}.temperature must stay above 0: its ramp goes from {ramp.start} to {ramp.end}"
    for where, optimizer in optimizers.items():
        size = optimizer.micro_batch_size
        if group is not None and size is not None and size % group:
            yield (
                f"{name} compares examples in groups of {group}: make {where}.optimizer.micro_batch_size ({size}) a "
                "multiple of that, or choose another group"
            )
