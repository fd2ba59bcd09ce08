"""Fetch data and weights; check the data, and write its splits in one form that all later stages read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd import assets, sizes, spec, tasks
from edgekd.errors import AssetError
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


def check(target: spec.Target, teachers: Sequence[spec.Teacher], done: Mapping[str, Path]) -> None:
    """Raise, while nothing is trained yet, what models that cannot be loaded or cut would end a later stage with.

    ``teachers`` are those still to be loaded, ``done`` the folders of the finished stages by the steps' names.
    ``AssetError`` for files that are absent or broken and vocabularies too small, ``TargetError`` for families that are
    not supported and configurations that make no student.
    """
    from edgekd.models import loading, neighbours  # not above: to fetch needs no torch
    from edgekd.models.student import cut_vocabulary, skeleton
    from edgekd.stages import labels

    known: dict[str, Any] = {}
    unread = False
    for teacher in teachers:
        folder = assets.resolve(teacher.source, also=teacher.files)
        config = loading.check(folder, teacher.gguf_file).to_dict()
        loading.load_tokenizer(folder, teacher.gguf_file)
        _check_finetune(teacher.finetune, config)
        if teacher == target.teacher:
            known, unread = config, teacher.gguf_file is not None  # whose configuration nobody could read before
    if "distill" in done:
        return
    augment = target.distill.augment
    module, first = tasks.TASKS[target.task.kind], target.learners[: len(target.assistants) + 1]  # of one kind each
    texts = module.read(done["assets"]).train.texts if any(student.vocabulary for student in first) else ()
    parent = _teachers_tokenizer(target.teacher, done)
    if augment is not None and augment.mask and parent is not None:
        neighbours.mask(parent)
    for i, student in enumerate(first, 1):
        if f"distill_{i}" in done:
            parent = _made_tokenizer(done[f"distill_{i}"])
            continue
        if student.source is not None:
            folder = assets.resolve(student.source)
            loading.check(folder)
            parent = loading.load_tokenizer(folder)
        if student.config is not None:
            loading.check_family(skeleton(student.config).config, "student.config")
        if parent is not None:
            parent, _ = cut_vocabulary(student, parent, texts)
    if unread:
        labels.check(target, known)
    sizes.smallest(target, known or None, lambda config: skeleton(config).config.to_dict() if config else {})


def _check_finetune(finetune: spec.Finetune | None, config: Mapping[str, Any]) -> None:
    """Raise ``TargetError`` for a model of which ``finetune`` would find nothing to train."""
    from edgekd.distill import head
    from edgekd.models import lora
    from edgekd.models.student import skeleton

    check = {"head": head.path, "lora": lora.corrected}.get(finetune.train if finetune else "all")
    if check is not None:
        check(skeleton(config))


def _teachers_tokenizer(teacher: spec.Teacher | spec.BlackBox, done: Mapping[str, Path]) -> Any:
    from edgekd.models import loading

    if isinstance(teacher, spec.BlackBox):  # its student's own is trained on the texts
        return None
    if "teacher" in done:  # its source may be gone
        return _made_tokenizer(done["teacher"])
    return loading.load_tokenizer(assets.resolve(teacher.source, also=teacher.files), teacher.gguf_file)


def _made_tokenizer(stage: Path) -> Any:
    """That of a finished stage; ``None`` where it was damaged since, which the walk notices and makes anew."""
    from edgekd.models import loading

    try:
        return loading.load_tokenizer(stage / "model")
    except AssetError:
        return None
