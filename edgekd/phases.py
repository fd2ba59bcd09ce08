"""Steps that only some targets have: unlabelled text, changed copies, and the student's time before the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from edgekd import spec
from edgekd.distill.taps import VALIDATION, taps
from edgekd.runner import After

GENERAL = "general"
"""The name of its text among a target's sources, and what its steps are called after."""


def lesson(general: spec.General) -> spec.Distill:
    """What the distill stage is told of the time before the task."""
    return spec.Distill(losses=general.losses, epochs=general.epochs, optimizer=general.optimizer)


def labelled(task: spec.Task) -> spec.Task:
    """The task without its unlabelled text: what has to do with labels alone, or with other text, is made of this."""
    return replace(task, transfer=None, transfer_words=None, transfer_column=None)


def transfer_sets(
    target: spec.Target, sources: Mapping[str, str], teachers: Iterable[str]
) -> dict[str, dict[str, object]]:
    """The steps that read unlabelled text: the task's, beside the ``assets`` of each of ``teachers`` (what their steps'
    names end in), and that of the time before the task, if it has any of its own.
    """

    def step(task: spec.Task, beside: str, source: str) -> dict[str, object]:
        return dict(task=task, assets=After(beside), source_fingerprint=sources.get(source), seed=target.seed)

    task, general = target.task, target.distill.general
    found = {}
    if task.transfer is not None or task.transfer_words is not None:
        found = {f"transfer{name}": step(task, f"assets{name}", "transfer") for name in teachers}
    if general is not None and general.text is not None:
        other = replace(task, transfer=general.text, transfer_words=None)
        found[f"transfer_{GENERAL}"] = step(other, "assets", GENERAL)
    return found


def before_the_task(target: spec.Target, texts: After) -> dict[str, dict[str, object]]:
    """The steps of the time before the task, in order; the student of the last begins the task. None without one.

    ``texts`` is what the task is taught on, which serves here too where there is no text of its own.
    """
    general = target.distill.general
    if general is None:
        return {}
    assert not isinstance(target.teacher, spec.BlackBox)  # such a target is refused: nobody sees into one
    task, first, trained = labelled(target.task), lesson(general), target.teacher.finetune
    raw = replace(target.teacher, finetune=trained and spec.Finetune(dropout=trained.dropout))  # however it is trained
    assets = texts if general.text is None else After(f"transfer_{GENERAL}")
    backbone, labels = After("backbone"), After(f"labels_{GENERAL}")
    wanted = (*taps(first, target.student), VALIDATION)
    return {
        "backbone": dict(task=task, teacher=raw, assets=After("assets"), seed=target.seed),
        f"labels_{GENERAL}": dict(task=task, taps=wanted, assets=assets, teacher=backbone),
        f"distill_{GENERAL}": dict(
            task=target.student.reading(task),
            student=target.student,
            distill=first,
            assets=assets,
            teacher=backbone,
            labels=labels,
            begin=None,
            seed=target.seed,
        ),
    }


def changed_copies(target: spec.Target, texts: After) -> dict[str, dict[str, object]]:
    """The step that adds changed copies to the data, ``texts``, if the target asks for any."""
    if target.distill.augment is None:
        return {}
    return {
        "augment": dict(
            task=target.task,
            augment=target.distill.augment,
            assets=texts,
            teacher=After("teacher"),
            seed=target.seed,
        )
    }
