"""What in how a target's student is taught contradicts something else there; the rest is in ``edgekd.checks``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekd.spec import blackbox
from edgekd.spec.losses import Exits
from edgekd.spec.sources import Mutual
from edgekd.spec.training import Finetune

if TYPE_CHECKING:
    from edgekd.spec import Student, Target


def of_teaching(target: Target) -> Iterator[str]:
    """Students, the exits that one is to have, who is there to learn from, and how the teacher is fine-tuned."""
    student, task, distill = target.student, target.task, target.distill
    learners = {"student": student, **{f"assistants[{i}]": other for i, other in enumerate(target.assistants)}}
    for path, learner in learners.items():
        yield from _student_contradictions(path, learner, task.max_length)
    yield from blackbox.contradictions(target)
    layers = [layer for loss in distill.losses if isinstance(loss, Exits) for layer in loss.at]
    if len(set(layers)) < len(layers):
        yield f"distill.losses: Exits name a layer twice, of {layers}: one exit a layer"
    if distill.exit is not None and distill.exit not in layers:
        yield f"distill.exit {distill.exit} is not among the exits {layers}: add Exits(at=({distill.exit},)) to losses"
    if distill.exit is not None and (target.assistants or distill.generations > 1):
        yield "distill.exit leaves a student that nobody goes on from: remove assistants and generations"
    if isinstance(distill.source, Mutual) and distill.source.students == 1 and not distill.source.teacher:
        yield "distill.source Mutual(students=1) leaves nobody to learn from: raise students, or set teacher=True"
    finetune, usual = getattr(target.teacher, "finetune", None), Finetune()
    if finetune is not None and finetune.train != "lora":
        if (finetune.rank, finetune.alpha) != (usual.rank, usual.alpha):
            yield f"teacher.finetune.rank and alpha are for train 'lora', not {finetune.train!r}: remove them"
        if finetune.train == "head" and finetune.dropout is not None:
            yield "teacher.finetune.dropout changes nothing in a backbone that stands still (train 'head'): remove it"


def _student_contradictions(path: str, student: Student, longest: int) -> Iterator[str]:
    if student.config is not None and (student.layers, student.hidden, student.heads, student.ffn) != (None,) * 4:
        yield f"{path}: give either a config or layers/hidden/heads/ffn, not both"
    if student.config is not None and not student.config.get("model_type"):
        yield f"{path}.config needs a model_type, e.g. {{'model_type': 'distilbert', ...}}"
    if student.hidden is not None and student.heads is not None and student.hidden % student.heads:
        yield f"{path}.hidden {student.hidden} is not divisible by {path}.heads {student.heads}"
    if student.positions is not None and student.positions < longest:
        yield f"{path}.positions {student.positions} is below task.max_length {longest}"
