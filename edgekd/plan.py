"""What a run would do and cost, before it does: stages to reuse, the student's size, disk, time. No torch, no net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd import history, machine, pipeline, runner, sizes
from edgekd.spec import BlackBox, Target


def plan(
    target: Target, folder: Path, *, beside: Path | None = None, fresh: str | None = None, to: str | None = None
) -> dict[str, Any]:
    """The plan as JSON data; what cannot be known yet is ``None``.

    ``stages``: ``{"stage", "key", "action", "seconds"}``, where action is ``reused``, ``resumed`` or ``run`` and
    seconds an estimate from earlier runs in ``folder``. ``stand_in``: what tells the device from this machine, on which
    it would be measured; ``warnings`` say what the schemes will not buy there (``Device.warning``). ``teacher``,
    ``student``, ``labels_bytes`` and ``problems`` (the budgets that cannot be met by construction) are those of
    ``edgekd.sizes``; ``black_box`` names a teacher that has no size.
    """
    line = pipeline.steps(target, folder, beside=beside)
    wanted, again = pipeline.span(line, fresh, to)
    past = history.History(folder, line, "cpu" if machine.gpu() is None else "cuda")
    stages = []
    for step in wanted:
        action = "run" if step in again else runner.state(step, folder)
        seconds = 0.0 if action == "reused" else past.estimate(step)
        stages.append({"stage": step.name, "key": step.stage.key, "action": action, "seconds": seconds})
    times = [entry["seconds"] for entry in stages]
    counts = past.counts(line[0])
    transfer = next((past.counts(step) for step in line if step.name == "transfer"), None)
    teacher, student = sizes.sizes(target, line)
    return {
        "target": target.name,
        "run": pipeline.run_name(target),
        "smoke": target.smoke,
        "device": target.device.name,
        "stand_in": machine.missing_features(target.device),
        "warnings": [why for scheme in target.quant.schemes if (why := target.device.warning(scheme)) is not None],
        "stages": stages,
        "seconds": None if None in times else sum(times),
        "examples": transfer or counts,
        "black_box": target.teacher.name if isinstance(target.teacher, BlackBox) else None,
        "teacher": teacher,
        "student": student,
        "labels_bytes": sizes.labels_bytes(line, counts, teacher, sizes.label_count(target, line)),
        "problems": sizes.problems(target, teacher, student),
    }
