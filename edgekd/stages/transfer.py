"""The transfer set: unlabelled text behind the training split, apart from ``assets``, since it trains no teacher."""

from __future__ import annotations

from edgekd import spec, tasks
from edgekd.stages.common import read_data
from edgekd.store import Context, Stage

REVISION = 1


def run(ctx: Context, *, task: spec.Task, assets: Stage, source_fingerprint: str | None, seed: int) -> None:
    """Write the data set of ``assets``, in the same form, with the task's transfer set.

    The fingerprint is in the key: a changed source is read anew. Raises ``DataError`` for text that cannot be taught.
    """
    module = tasks.TASKS[task.kind]
    data = module.with_transfer(read_data(task, assets), task, seed, ctx.progress)
    module.write(data, ctx.out)
    ctx.progress.log(
        f"transfer: {data.counts['transfer']} unlabelled texts behind {data.counts['train']} training ones"
    )
