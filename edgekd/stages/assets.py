"""Fetch data and weights; check the data, and write its splits in one form that all later stages read."""

from __future__ import annotations

from edgekd import assets, spec, tasks
from edgekd.store import Context

REVISION = 3


def run(
    ctx: Context,
    *,
    task: spec.Task,
    teacher_source: str | None,
    teacher_files: tuple[str, ...],
    student_sources: dict[str, str],
    source_fingerprints: dict[str, str],
    seed: int,
) -> None:
    """Write ``data/*.parquet`` and ``dataset.json``. The fingerprints are in the key: changed sources are read anew.

    The models stay in the asset cache, where their stages find them without a network; ``teacher_files`` as ``also`` of
    ``edgekd.assets.resolve``. ``student_sources`` are the backbones that students are cut from in place of the teacher,
    with their fingerprints.
    """
    module = tasks.TASKS[task.kind]
    data = module.load(task, seed, ctx.progress)
    if teacher_source is not None:  # a black box is asked where it is
        assets.resolve(teacher_source, also=teacher_files, progress=ctx.progress)
    for source in student_sources:
        assets.resolve(source, progress=ctx.progress)
    module.write(data, ctx.out)
    sizes = ", ".join(f"{count} {split}" for split, count in data.counts.items())
    ctx.progress.log(f"assets: {len(data.labels)} labels; {sizes} examples")
