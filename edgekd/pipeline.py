"""The line from teacher to shipped student: its stages with their keys, and the walk along them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgekd import phases, runner, sizes, store
from edgekd.errors import DataError, UsageError
from edgekd.graph import STAGES, STUDENT, graph, teachers
from edgekd.progress import Progress
from edgekd.runner import Step
from edgekd.spec import BlackBox, Target, Teacher

ENDS = (*STAGES, "verdict", "ship")
"""Where a run may stop. The last two are cheap, always run again, and are not kept in the store."""


def steps(target: Target, folder: Path, *, beside: Path | None = None) -> list[Step]:
    """Every stage of ``target`` with its key: before anything has run, without network and without torch.

    ``folder`` is the ``--store`` folder. ``beside`` is the target's file: a calibration list next to it comes before
    the packaged one. What `edgekd tune` chose for this placement is in the run's folder. Raises ``AssetError`` and
    ``DataError`` for a source or a calibration list that is not there.
    """
    from edgekd import assets, catalog, machine, runtimes
    from edgekd.tuning import result

    task = target.task
    calibration = target.quant.calibration if target.quant.static else ""  # what nobody reads need not exist
    locators = {"train": task.train, "validation": task.validation, "test": task.test, "transfer": task.transfer}
    if target.distill.general is not None:
        locators[phases.GENERAL] = target.distill.general.text
    sources = {name: assets.fingerprint(locator) for name, locator in locators.items() if locator is not None}
    sources |= {f"teacher{name}": _fingerprint(given) for name, given in teachers(target).items()}
    backbones = {student.source for student in target.learners if student.source is not None}
    sources |= {f"{STUDENT}{locator}": assets.fingerprint(locator) for locator in backbones}
    ids = tuple(catalog.calibration_ids(calibration, beside=beside)) if calibration else ()
    here = {**machine.fingerprint(), "runtimes": runtimes.installed()}  # installing one more makes new rows
    session = result.session(folder / run_name(target), target)
    converters = {name: found for name in target.bench.runtimes if (found := runtimes.converters(name))}
    return runner.resolve(graph(target, sources, ids, here, session, converters), folder, stage_revision)


def run(
    target: Target,
    *,
    to: str | None = None,
    fresh: str | None = None,
    device: str = "auto",
    folder: Path = Path("runs"),
    out: Path | None = None,
    beside: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Walk the line, reusing what is finished and resuming what is not; then judge the run and ship it.

    ``to`` is the last stage wanted, ``fresh`` the first to be done anew, with everything after it; ``out`` is where the
    bundle goes (``dist/<run>``). Returns what happened: ``{"run", "folder", "stages": {name: {"key", "folder",
    "action", "seconds"}}, "report", "bundle"}``; the last two are ``None`` when ``to`` stops before them. Raises any
    ``EdgekdError``; what was finished by then stays finished.
    """
    name = run_name(target)
    bundle = out or Path("dist") / name
    rank, _ = runner.ranks()
    progress = progress or Progress(quiet=rank > 0)
    line = steps(target, folder, beside=beside)
    wanted, again = span(line, fresh, to)
    if to in (None, "ship") and rank == 0:
        from edgekd import ship

        ship.refuse_to_overwrite(bundle)  # now, not when everything has been done
    _check_models(target, line)
    context = runner.torch_context(device, progress)
    if target.student.config is not None and any(step.name == "quantize" for step in wanted):
        from edgekd.stages import quantize

        quantize.check(target.student, target.quant)
    if rank == 0:
        for step in again:
            store.discard(folder, step.stage.name, step.stage.key)
    runner.meet()
    walk = partial(runner.walk, folder=folder, function=stage_function, context=context, progress=progress)
    fetched, loaded = 1 + len(target.co_teachers), [step.name for step in line].index("teacher") + 1
    actions = walk(wanted[:fetched])
    _check_calibration(target, line)
    _check_models(target, line)  # the teacher has been fetched
    if wanted[fetched:]:
        _check_sources(target, line, folder)
    actions |= walk(wanted[fetched:loaded])
    _check_models(target, line)  # what was fetched may have been a GGUF file, which is converted now
    actions |= walk(wanted[loaded:])
    result: dict[str, Any] = {
        "run": name,
        "folder": str(folder / name),
        "stages": {step.name: _summary(step, actions[step.name]) for step in wanted},
        "report": None,
        "bundle": None,
    }
    if rank > 0:
        return result
    (folder / name).mkdir(parents=True, exist_ok=True)
    store.write_json(folder / name / "stages.json", {step.name: step.stage.path.name for step in wanted})
    if to in (None, "verdict", "ship"):
        from edgekd.stages import verdict

        verdict.run(target, {step.name: step.stage for step in wanted}, folder / name)
        result["report"] = str(folder / name / "report.json")
    if to in (None, "ship"):
        from edgekd import ship

        result["bundle"] = str(ship.ship(folder / name, bundle))
    return result


def run_name(target: Target) -> str:
    """The name of the run's folder: the target's, with ``-smoke`` for a smoke run."""
    return f"{target.name}-smoke" if target.smoke else target.name


def span(line: Sequence[Step], fresh: str | None, to: str | None) -> tuple[list[Step], list[Step]]:
    """The steps up to ``to`` (all, if it is None), and those of them, from ``fresh`` on, to be done anew.

    Raises ``UsageError`` for names that are none, and where ``fresh`` would discard what ``to`` does not make again.
    """
    names = [*(step.name for step in line), *ENDS[len(STAGES) :]]
    for name in (fresh, to):
        if name is not None and name not in names:
            raise UsageError(f"there is no stage {name!r}; the stages are {', '.join(names)}")
    last = names.index(to or names[-1])
    first = names.index(fresh) if fresh else len(names)
    if fresh and first > last:
        raise UsageError(f"--fresh {fresh} would discard what --to {to} does not make again; leave one of them out")
    return list(line[: last + 1]), list(line[first : last + 1])


def stage_revision(name: str) -> int:
    """``REVISION`` of ``edgekd/stages/<name>.py``, read without importing it: a plan does not wait for torch."""
    found = importlib.util.find_spec(f"edgekd.stages.{name}")
    assert found is not None and found.origin is not None, name
    for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "REVISION" for t in node.targets):
            return int(ast.literal_eval(node.value))
    raise AssertionError(f"edgekd/stages/{name}.py has no REVISION")


def stage_function(name: str) -> Callable[..., None]:
    """``run`` of ``edgekd/stages/<name>.py``, imported now and not before."""
    function: Callable[..., None] = importlib.import_module(f"edgekd.stages.{name}").run
    return function


def _check_models(target: Target, line: Sequence[Step]) -> None:
    """Raise what ``sizes.check`` does, and ``TargetError`` for models without the signals that losses look at."""
    from edgekd.distill import taps

    sizes.check(target, line)
    if taps.inside(target.distill.all_losses, 1) != taps.LOGITS and not sizes.finished(line, "distill", "student.json"):
        from edgekd.stages import labels

        labels.check(target, sizes.teacher_config(target, line))


def _check_sources(target: Target, line: Sequence[Step], folder: Path) -> None:
    """Raise what ``stages.assets.check`` does of the models that have been fetched and are still to be loaded."""
    done = {step.name: step.stage.path for step in line if store.find(folder, step.stage.name, step.stage.key)}
    given = {name: teacher for name, teacher in teachers(target).items() if isinstance(teacher, Teacher)}
    waiting = [one for name, one in given.items() if f"assets{name}" in done and f"teacher{name}" not in done]
    if waiting or "distill" not in done:
        from edgekd.stages import assets

        assets.check(target, waiting, done)


def _check_calibration(target: Target, line: Sequence[Step]) -> None:
    """Raise ``DataError`` for a calibration id outside the training split; in a smoke run, outside the whole one."""
    from edgekd import tasks

    given = {step.name: step for step in line}
    ids: Any = given["quantize"].inputs["calibration_ids"]
    known_ids = set(tasks.TASKS[target.task.kind].training_ids(given["assets"].stage.path) if ids else ())
    missing = [name for name in ids if name not in known_ids]
    if missing:
        raise DataError(
            f"calibration list {target.quant.calibration!r}: {missing[0]!r} ({len(missing)} in all) is not in the "
            "training split; a list may hold ids of that split only, not of validation or test"
        )


def _summary(step: Step, action: str) -> dict[str, object]:
    seconds = store.read_json(step.stage.path / store.MANIFEST)["seconds"]
    return {"key": step.stage.key, "folder": str(step.stage.path), "action": action, "seconds": seconds}


def _fingerprint(teacher: Teacher | BlackBox) -> str:
    from edgekd import assets
    from edgekd.blackbox import function

    return function.fingerprint(teacher) if isinstance(teacher, BlackBox) else assets.fingerprint(teacher.source)
