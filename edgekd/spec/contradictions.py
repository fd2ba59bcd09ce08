"""What in how a target's student is taught contradicts something else there; the rest is in ``edgekd.checks``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekd.spec.losses import Exits
from edgekd.spec.sources import Mutual
from edgekd.spec.training import Finetune

if TYPE_CHECKING:
    from edgekd.spec import Target


def of_teaching(target: Target) -> Iterator[str]:
    """The exits that a student is to have, who is there to learn from, and how the teacher is fine-tuned."""
    distill = target.distill
    layers = [layer for loss in distill.losses if isinstance(loss, Exits) for layer in loss.at]
    if len(set(layers)) < len(layers):
        yield f"distill.losses: Exits name a layer twice, of {layers}: one exit a layer"
    if distill.exit is not None and distill.exit not in layers:
        yield f"distill.exit {distill.exit} is not among the exits {layers}: add Exits(at=({distill.exit},)) to losses"
    if distill.exit is not None and (target.assistants or distill.generations > 1):
        yield "distill.exit leaves a student that nobody goes on from: remove assistants and generations"
    if isinstance(distill.source, Mutual) and distill.source.students == 1 and not distill.source.teacher:
        yield "distill.source Mutual(students=1) leaves nobody to learn from: raise students, or set teacher=True"
    finetune, usual = target.teacher.finetune, Finetune()
    if finetune is not None and finetune.train != "lora":
        if (finetune.rank, finetune.alpha) != (usual.rank, usual.alpha):
            yield f"teacher.finetune.rank and alpha are for train 'lora', not {finetune.train!r}: remove them"
        if finetune.train == "head" and finetune.dropout is not None:
            yield "teacher.finetune.dropout changes nothing in a backbone that stands still (train 'head'): remove it"
