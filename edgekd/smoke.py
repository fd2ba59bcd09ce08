"""A target cut to minutes, to see the whole line work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgekd.spec import Bench, Target, Teacher

FEW: Any = {"threads": (1,), "rounds": 1, "calls": 50}


def smoke(target: Target) -> Target:
    """The same line on few examples and steps, every stage real. Its report is stamped SMOKE."""
    general = target.distill.general
    if general:
        general = replace(general, epochs=min(1.0, general.epochs))
    return replace(
        target,
        smoke=True,
        task=replace(target.task, limit=min(256, target.task.limit or 256)),
        teacher=_short(target.teacher),
        co_teachers=tuple(map(_short, target.co_teachers)),
        distill=replace(target.distill, epochs=min(2.0, target.distill.epochs), general=general),
        quant=replace(target.quant, epochs=min(1.0, target.quant.epochs)),
        export=replace(target.export, parity_examples=128, min_agreement=0.98, max_score_gap=0.02),
        bench=Bench(runtimes=target.bench.runtimes, workloads=dict.fromkeys(target.bench.runtimes, ("real",)), **FEW),
    )


def _short(teacher: Any) -> Any:
    if not isinstance(teacher, Teacher) or teacher.finetune is None:
        return teacher
    return replace(teacher, finetune=replace(teacher.finetune, epochs=min(1.0, teacher.finetune.epochs)))
