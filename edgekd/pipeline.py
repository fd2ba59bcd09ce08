"""The line from teacher to shipped student: which stages there are, and exactly what each is given."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgekd import phases, runner, sizes, store
from edgekd.errors import DataError, UsageError
from edgekd.progress import Progress
from edgekd.runner import After, Step
from edgekd.spec import Target, Teacher

STAGES = ("assets", "teacher", "labels", "distill", "quantize", "export", "bench")
"""The stages that the store keeps, in order."""

ENDS = (*STAGES, "verdict", "ship")
"""Where a run may stop. The last two are cheap, always run again, and are not kept in the store."""


def graph(
    target: Target,
    sources: Mapping[str, str],
    calibration_ids: tuple[str, ...],
    machine: Mapping[str, object],
    session: Mapping[str, object] | None = None,
) -> dict[str, dict[str, object]]:
    """Each stage's keyword arguments, which are also what its key is made of. Nothing else reaches a stage.

    Co-teachers have steps of their own beside the teacher's. Assistants and earlier generations of the student stand
    before ``distill``, each with the labels that it gives; before them what ``edgekd.phases`` adds. Students are taught
    on ``data``: what ``assets`` wrote, or ``augment``. ``sources`` are the fingerprints of the data and the teachers,
    ``machine`` what a latency depends on; ``session`` holds the options that `edgekd tune` chose, if any.
    """
    from edgekd.distill.taps import taps

    t, best = target, target.distill.relabel == "best"
    assets, teacher, distill, quantize, export = (After(name) for name in STAGES[:-1] if name != "labels")
    teachers = _teachers(t)
    copies, general = phases.changed_copies(t), phases.before_the_task(t)
    data, begin = After("augment") if copies else assets, After(list(general)[-1]) if general else None
    stored = tuple(After(f"labels{name}") for name in teachers)
    labels: After | tuple[After, ...] = stored if t.co_teachers else stored[0]
    asked = taps(t.distill, t.learners[0])
    parent: After = teacher
    before: tuple[After, ...] = (teacher,)
    chain: dict[str, dict[str, object]] = {}
    task_sources = {name: source for name, source in sources.items() if name != phases.GENERAL}
    for i, student in enumerate(t.learners):
        if i:
            made, labels = After(f"distill_{i}"), After(f"labels_{i}")
            parent, before = (made, (made,)) if i <= len(t.assistants) else (parent, (*before, made))
            by = before if best else made
            chain[labels.stage] = dict(task=t.task, taps=taps(t.distill, student), assets=data, teacher=by)
        chain["distill" if i + 1 == len(t.learners) else f"distill_{i + 1}"] = dict(
            task=t.task,
            student=student,
            distill=t.distill,
            assets=data,
            teacher=parent,
            labels=labels,
            begin=begin,
            seed=t.seed + (i if best else 0),
        )
    return {
        **{
            f"assets{name}": dict(
                task=t.task,
                teacher_source=given.source,
                teacher_files=given.files,
                source_fingerprints=_fingerprints(task_sources, name),
                seed=t.seed,
            )
            for name, given in teachers.items()
        },
        **phases.read_apart(t, _fingerprints(sources, "")),
        **{
            f"teacher{name}": dict(task=t.task, teacher=given, assets=After(f"assets{name}"), seed=t.seed)
            for name, given in teachers.items()
        },
        **copies,
        **general,
        **{
            f"labels{name}": dict(
                task=t.task,
                taps=asked[:1] if name else asked,
                assets=data if copies else After(f"assets{name}"),
                teacher=After(f"teacher{name}"),
            )
            for name in teachers
        },
        **chain,
        "quantize": dict(
            task=t.task,
            distill_spec=t.distill,
            quant=t.quant,
            score_kept=t.budget.score_kept if t.quant.train == "if_needed" else None,
            assets=data,
            teacher=teacher,
            labels=labels,
            distill=distill,
            calibration_ids=calibration_ids,
            seed=t.seed,
        ),
        "export": dict(
            task=t.task,
            quant=t.quant,
            export=t.export,
            assets=assets,
            teacher=teacher,
            distill=distill,
            quantize=quantize,
        ),
        "bench": dict(
            task=t.task,
            bench=t.bench,
            device=t.device,
            export=export,
            assets=assets,
            machine=machine,
            session=dict(session or {}),
        ),
    }


def _teachers(target: Target) -> dict[str, Teacher]:
    """Every teacher by what its steps' names end in, the target's own first: by nothing."""
    return {"": target.teacher} | {f"_also{i}": given for i, given in enumerate(target.co_teachers, 1)}


def _fingerprints(sources: Mapping[str, str], name: str) -> dict[str, str]:
    """Those of the data and of one teacher, as if it were the only one: its stages are those of such a target."""
    teachers = {source for source in sources if source.startswith("teacher")} - {f"teacher{name}"}
    return {source.removesuffix(name): found for source, found in sources.items() if source not in teachers}


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
    sources |= {f"teacher{name}": assets.fingerprint(given.source) for name, given in _teachers(target).items()}
    ids = tuple(catalog.calibration_ids(calibration, beside=beside)) if calibration else ()
    here = {**machine.fingerprint(), "runtimes": runtimes.installed()}  # installing one more makes new rows
    session = result.session(folder / run_name(target), target)
    return runner.resolve(graph(target, sources, ids, here, session), folder, stage_revision)


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
    if taps.inside(target.distill.losses, 1) != taps.LOGITS and not sizes.finished(line, "distill", "student.json"):
        from edgekd.stages import labels

        labels.check(target, sizes.teacher_config(target, line))


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
