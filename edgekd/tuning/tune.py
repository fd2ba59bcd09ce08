"""Time the placements and session options that matter on this machine, and choose by what was measured."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edgekd
from edgekd import machine, pipeline, runner, runtimes, store, tasks
from edgekd.bench import rows as bench_rows
from edgekd.bench.measure import Artifact, measure
from edgekd.errors import ExportError, TargetError, TrainingError, UsageError
from edgekd.progress import Progress
from edgekd.report import devices
from edgekd.runner import Step
from edgekd.shape import SHALLOW
from edgekd.spec import Export, Target
from edgekd.spec.literal import literal
from edgekd.store import Stage, read_json
from edgekd.tuning import result
from edgekd.tuning.candidates import (
    DEFAULT,
    OPTIMIZERS,
    OWN,
    Candidate,
    options,
    placements,
    united,
    untrained,
)
from edgekd.tuning.choose import Row, choose, least_score, outcome, p50, winners

STAGE = "candidate"
NEEDED = ("assets", "teacher", "distill")
SHOWN = ("size_bytes", "peak_rss_mib", "round_p50_ms", "p50_ms", "valid", "why_invalid")


def tune(
    target: Target,
    folder: Path,
    *,
    beside: Path | None = None,
    rounds: int = 5,
    calls: int = 100,
    only: Sequence[str] = (),
    again: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try what ``candidates`` lists on the target's distilled student, write ``tune.json`` into the run, return it.

    ``only`` names the placements and session options to try; without any it is all. Placements are timed first; then,
    on the fastest, session options one by one; then what was chosen once more beside the target's own, in fresh
    processes: only what is faster there too stays, since of many candidates one is easily lucky. Exported candidates
    stay in the store and samples in the run's ``tune/``, from where a second call takes them; ``again`` times anew.
    ``missing`` tells the target's device from this machine, if that is only a stand-in (``machine.missing_features``).
    Raises ``UsageError`` where the distill stage is not finished, and for an unknown name in ``only``.
    """
    progress = progress or Progress()
    run = folder / pipeline.run_name(target)
    line = {step.name: step for step in pipeline.steps(target, folder, beside=beside)}
    for name in NEEDED:
        if store.find(folder, name, line[name].stage.key) is None:
            smoke = " --smoke" if target.smoke else ""
            raise UsageError(
                f"the {name} stage of {target.name} is not finished in {folder}, and tuning needs its trained student: "
                f"run `edgekd run {beside or target.name}{smoke} --to distill` first"
            )
    if again:
        shutil.rmtree(run / "tune", ignore_errors=True)
    student = read_json(line["distill"].stage.path / "student.json")
    teacher = read_json(line["teacher"].stage.path / "scores.json")["validation"]["score"]
    attention = _attention(read_json(line["distill"].stage.path / "model" / "config.json"))
    found = _wanted(placements(target, student["hidden"], student["heads"], attention), only)
    built, broken = _build(found, target, line, folder, progress)
    timing = _Timing(target, run / "tune", rounds, calls, progress)

    progress.log(f"tune: {len(built)} placements")
    rows = timing.rows([_artifact(name, stage) for name, stage in built.items()], OWN)
    choosable = {c.name: c for c in found if c.name in built and c.target(target) is not None}
    least = least_score([row for row in rows if row["artifact"] in choosable], target.budget.score_kept, teacher)
    chosen = choose(rows, OWN, choosable, least)

    tried = options(read_json(built[chosen].path / "audit.json")["operators"], timing.threads)
    tried = {name: given for name, given in tried.items() if not only or name in (DEFAULT, *only)}
    progress.log(f"tune: {len(tried) - 1} session options on {chosen}")
    opened = [_artifact(name, built[chosen], given) for name, given in tried.items()] if len(tried) > 1 else []
    session_rows = timing.rows(opened, DEFAULT)
    floor = min(
        least, next(row["score"] or 0.0 for row in rows if row["artifact"] == chosen)
    )  # options change no score
    session = united([tried[name] for name in winners(session_rows, DEFAULT, tried, floor)])

    final, session, confirmed = _confirm(timing, built, chosen, session, floor)
    winner, missing = choosable[final], machine.missing_features(target.device)
    content = {
        "schema": result.SCHEMA,
        "target": target.name,
        "run": run.name,
        "smoke": target.smoke,
        "edgekd_version": edgekd.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": target.device.name,
        "missing": missing,
        "measured_on": devices.measured_on(missing),
        "machine": machine.fingerprint(),
        "versions": runtimes.installed(),
        "threads": timing.threads,
        "rounds": rounds,
        "calls": calls,
        "teacher_score": teacher,
        "least_score": least,
        "placements": [_placement(c, rows, broken, c.name in choosable, least) for c in found],
        "session": [_line(row, floor) | {"options": tried[row["artifact"]]} for row in session_rows],
        "confirmed": [_line(row, floor) for row in confirmed],
        "chosen": {
            "name": final,
            "placement": result.placement(replace(target, quant=winner.quant, export=winner.export)),
            "session": session,
            "lines": [
                f"{name}={literal(value)},"
                for name, value in (("quant", winner.quant), ("export", winner.export))
                if value != getattr(target, name)
            ],
        },
    }
    run.mkdir(parents=True, exist_ok=True)
    store.write_json(run / result.NAME, content)
    return content


def _attention(config: dict[str, Any]) -> tuple[str, ...]:
    """Globs over the products of queries and keys, and of weights and values, which families call by other paths."""
    if config["model_type"] in SHALLOW:
        return ()
    from edgekd.distill.record import projections
    from edgekd.models.student import skeleton

    parents = (names[0].rpartition(".")[0] for names in projections(skeleton(config)))
    return tuple(dict.fromkeys(re.sub(r"\.\d+", ".*", parent) + ".MatMul*" for parent in parents))


def _wanted(found: Iterable[Candidate], only: Sequence[str]) -> list[Candidate]:
    every = list(found)
    names = [*(candidate.name for candidate in every), *options(dict.fromkeys(OPTIMIZERS, 1), threads=2)]
    if unknown := [name for name in only if name not in names]:
        raise UsageError(f"there is no candidate {unknown[0]!r}; there are {', '.join(names)}")
    return [candidate for candidate in every if not only or candidate.name in (OWN, *only)]


class _Timing:
    """The bench, as all of tune uses it: onnxruntime, the fewest threads of the target, real validation lengths."""

    def __init__(self, target: Target, out: Path, rounds: int, calls: int, progress: Progress) -> None:
        self.threads = min(target.bench.threads)
        self._score = tasks.TASKS[target.task.kind].score
        self._out, self._rounds, self._calls, self._progress = out, rounds, calls, progress

    def rows(self, artifacts: Sequence[Artifact], baseline: str) -> list[bench_rows.Row]:
        """A row each, with the ratio to ``baseline`` as ``speedup_vs_teacher``."""
        return measure(
            artifacts,
            runtimes=("ort_cpu",),
            threads=(self.threads,),
            workloads={},
            rounds=self._rounds,
            calls=self._calls,
            out=self._out,
            progress=self._progress,
            score=self._score,
            baseline=baseline,
        )


def _build(
    found: Sequence[Candidate], target: Target, line: Mapping[str, Step], folder: Path, progress: Progress
) -> tuple[dict[str, Stage], dict[str, str]]:
    """The finished candidates by name, and why the others are none. Raises as theirs if the target's own is none."""
    context = runner.torch_context("cpu", Progress(quiet=True))
    built, broken = {}, {}
    with progress.bar("tune: exporting", total=len(found), unit="graph") as advance:
        for candidate in found:
            inputs: dict[str, object] = dict(
                task=target.student.reading(target.task),
                quant=untrained(candidate.quant),
                export=replace(Export(), opset=target.export.opset, graph=candidate.export.graph),
                hidden=candidate.hidden,
                assets=line["assets"].stage,
                distill=line["distill"].stage,
                calibration_ids=line["quantize"].inputs["calibration_ids"],
            )
            revision = pipeline.stage_revision(STAGE)
            key = store.key(STAGE, revision, inputs)
            step = Step(Stage(STAGE, key, store.folder(folder, STAGE, key)), revision, inputs, STAGE)
            try:
                quiet = Progress(quiet=True)
                runner.walk([step], folder, function=pipeline.stage_function, context=context, progress=quiet)
                built[candidate.name] = step.stage
            except (ExportError, TargetError, TrainingError) as error:
                if candidate.name == OWN:
                    raise
                broken[candidate.name] = str(error)
                store.discard(folder, STAGE, key)
            advance(1, last=candidate.name)
    return built, broken


def _artifact(name: str, stage: Stage, session: Mapping[str, Any] | None = None) -> Artifact:
    return Artifact(name, (stage.path,), stage.path / "inputs.npz", session or {})


def _confirm(
    timing: _Timing, built: Mapping[str, Stage], chosen: str, session: dict[str, Any], least: float
) -> tuple[str, dict[str, Any], list[bench_rows.Row]]:
    """What of the choice is faster once more, in processes of its own: placement, options, and the rows."""
    if chosen == OWN and not session:
        return chosen, session, []
    again = {"confirm_own": _artifact("confirm_own", built[OWN])}
    if chosen != OWN:
        again["confirm_placement"] = _artifact("confirm_placement", built[chosen])
    if session:
        again["confirm_session"] = _artifact("confirm_session", built[chosen], session)
    rows = timing.rows(list(again.values()), "confirm_own")
    if chosen != OWN and choose(rows, "confirm_own", ["confirm_placement"], least) == "confirm_own":
        return OWN, {}, rows
    base = "confirm_own" if chosen == OWN else "confirm_placement"
    against = copy.deepcopy(rows)
    bench_rows.compare(against, base)
    if session and choose(against, base, ["confirm_session"], least) == base:
        return chosen, {}, rows
    return chosen, session, rows


def _line(row: Row, least: float) -> dict[str, Any]:
    """What the evidence keeps of a measured row."""
    time = p50(row)
    return {
        "name": row["artifact"],
        "score": row["score"],
        **{name: row[name] for name in SHOWN},
        "p50_low_ms": time and time.low,
        "p50_high_ms": time and time.high,
        "ratio": row["speedup_vs_teacher"],
        "ratio_low": row["speedup_low"],
        "ratio_high": row["speedup_high"],
        "verdict": outcome(row, least),
    }


def _placement(
    candidate: Candidate, rows: Sequence[Row], broken: Mapping[str, str], choosable: bool, least: float
) -> dict[str, Any]:
    about: dict[str, Any] = {"name": candidate.name, "about": candidate.about, "scheme": candidate.quant.scheme}
    about |= {"keep_float": list(candidate.quant.keep_float), "choosable": choosable}
    if candidate.name in broken:
        return about | {"verdict": "no graph", "why": broken[candidate.name]}
    row = next(row for row in rows if row["artifact"] == candidate.name)
    if candidate.hidden:  # its weights are random
        return _line({**row, "score": least}, least) | about | {"score": None}
    return _line(row, least) | about
