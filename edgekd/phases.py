"""Steps that only some targets have: changed copies of the texts, and the student's time before the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgekd import spec
from edgekd.distill.taps import VALIDATION, taps
from edgekd.runner import After

GENERAL = "general"
"""The name of its text among a target's sources, and what its steps are called after."""


def lesson(general: spec.General) -> spec.Distill:
    """What the distill stage is told of the time before the task."""
    return spec.Distill(losses=general.losses, epochs=general.epochs, optimizer=general.optimizer)


def read_apart(target: spec.Target, sources: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The step that reads the text of the time before the task, if it has any of its own."""
    general = target.distill.general
    if general is None or general.text is None:
        return {}
    return {
        f"assets_{GENERAL}": dict(
            task=replace(target.task, transfer=general.text, transfer_words=None),
            teacher_source=target.teacher.source,
            teacher_files=target.teacher.files,
            student_sources={},
            source_fingerprints={**sources, "transfer": sources.get(GENERAL)},
            seed=target.seed,
        )
    }


def before_the_task(target: spec.Target) -> dict[str, dict[str, object]]:
    """The steps of the time before the task, in order; the student of the last begins the task. None without one."""
    general = target.distill.general
    if general is None:
        return {}
    assert not isinstance(target.teacher, spec.BlackBox)  # such a target is refused: nobody sees into one
    task, first, trained = target.task, lesson(general), target.teacher.finetune
    raw = replace(target.teacher, finetune=trained and spec.Finetune(dropout=trained.dropout))  # however it is trained
    assets = After("assets" if general.text is None else f"assets_{GENERAL}")
    backbone, labels = After("backbone"), After(f"labels_{GENERAL}")
    wanted = (*taps(first, target.student), VALIDATION)
    return {
        "backbone": dict(task=task, teacher=raw, assets=After("assets"), seed=target.seed),
        f"labels_{GENERAL}": dict(task=task, taps=wanted, assets=assets, teacher=backbone),
        f"distill_{GENERAL}": dict(
            task=task,
            student=target.student,
            distill=first,
            assets=assets,
            teacher=backbone,
            labels=labels,
            begin=None,
            seed=target.seed,
        ),
    }


def changed_copies(target: spec.Target) -> dict[str, dict[str, object]]:
    """The step that adds changed copies to the data, if the target asks for any."""
    if target.distill.augment is None:
        return {}
    return {
        "augment": dict(
            task=target.task,
            augment=target.distill.augment,
            assets=After("assets"),
            teacher=After("teacher"),
            seed=target.seed,
        )
    }
