"""Fetch the data, check it, and write its splits in one form that all later stages read."""

from __future__ import annotations

from edgekd import spec, tasks
from edgekd.store import Context

REVISION = 1


def run(ctx: Context, *, task: spec.Task, source_fingerprints: dict[str, str], seed: int) -> None:
    """Write ``data/*.parquet`` and ``dataset.json``. The fingerprints are in the key: changed sources are read anew."""
    module = tasks.TASKS[task.kind]
    data = module.load(task, seed, ctx.progress.log)
    module.write(data, ctx.out)
    sizes = ", ".join(f"{len(getattr(data, split).ids)} {split}" for split in ("train", "validation", "test"))
    ctx.progress.log(f"assets: {len(data.labels)} labels; {sizes} examples")
