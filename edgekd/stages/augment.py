"""Changed copies of the training texts, behind the transfer set: the data that all later stages teach on."""

from __future__ import annotations

from dataclasses import replace

from edgekd import spec, tasks
from edgekd.errors import DataError
from edgekd.models import neighbours
from edgekd.stages.common import load_stage_model, read_data
from edgekd.store import Context, Stage
from edgekd.tasks import augment as changes
from edgekd.tasks.examples import join

REVISION = 1


def run(ctx: Context, *, task: spec.Task, augment: spec.Augment, assets: Stage, teacher: Stage, seed: int) -> None:
    """Write the data set of ``assets``, in the same form, with copies for which ``teacher`` finds the words.

    Raises ``DataError`` where it finds none, ``TargetError`` where nothing stands for a masked word.
    """
    data = read_data(task, assets)
    model, tokenizer = load_stage_model(teacher, data.labels)
    mask = neighbours.mask(tokenizer) if augment.mask else ""
    near: dict[str, tuple[str, ...]] = {}
    if augment.replace:
        table_VH = model.get_input_embeddings().weight
        near = neighbours.nearest(table_VH, tokenizer, changes.words(data.train.texts), augment.neighbours)
        if not near:
            raise DataError("distill.augment: no two words of the training texts are one token each; set replace=0")
    copies = changes.copies(data, augment, mask, near, seed)
    tasks.TASKS[task.kind].write(replace(data, transfer=join(data.transfer, copies)), ctx.out)
    ctx.progress.log(f"augment: {len(copies)} changed copies of {len(data.train)} texts; {len(near)} words replaceable")
