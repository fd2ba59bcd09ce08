"""Every artifact in every runtime: fresh processes, interleaved, in rounds; resumable; a crash is a row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import runtimes as runtime_table
from edgekd import store
from edgekd.bench import child, hosts, launch, rows
from edgekd.bench.rows import Cell, Row
from edgekd.bench.workloads import asked_of, fixed_length
from edgekd.bench.workloads import load as load_inputs
from edgekd.progress import Progress

BASELINE = "teacher_fp32"
REFERENCE_RUNTIME = "ort_cpu"
Figures = list[dict[str, Any]]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Artifact:
    """Folders with the files that runtimes load (``model.onnx``, ...), and the tokenized test split that they read.

    ``session`` holds options (``edgekd.session``) for its sessions in onnxruntime on the CPU; ``lacking`` says why a
    runtime's file could not be made; ``int8`` are the multiplications that the graph has in int8, by node.
    """

    name: str
    folders: tuple[Path, ...]
    inputs: Path
    session: Mapping[str, Any] = field(default_factory=dict, hash=False)
    lacking: Mapping[str, str] = field(default_factory=dict, hash=False)
    int8: frozenset[str] = frozenset()

    def file(self, runtime: str) -> Path | None:
        """The runtime's file, if it is there."""
        name = runtime_table.entry(runtime).file
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def files(self, runtime: str) -> list[Path]:
        """The runtime's file and the data beside it: under names that begin with its own, or of the runtime's."""
        found, weights = self.file(runtime), runtime_table.entry(runtime).weights
        if found is None:
            return []
        beside = [*found.parent.glob(f"{found.name}*"), found.parent / weights]
        return sorted(one for one in beside if one.is_file())

    def size_bytes(self, runtime: str) -> int:
        """The bytes of ``files``."""
        return sum(found.stat().st_size for found in self.files(runtime))


def measure(
    artifacts: Sequence[Artifact],
    *,
    runtimes: Sequence[str],
    threads: Sequence[int],
    workloads: Mapping[str, Sequence[str]],
    rounds: int,
    calls: int,
    out: Path,
    progress: Progress,
    score: Callable[[Logits, NDArray[np.int64]], float],
    baseline: str = BASELINE,
    timeout_s: float = 900.0,
    host: hosts.Host = hosts.HERE,
) -> list[Row]:
    """Measure on ``host``; one row per artifact, runtime, threads and workload (given by runtime; default ``real``).

    Of ``threads`` no count goes beyond what may run at once there; each is measured once.

    A round goes through all cells (runtime, threads, workload) and, within a cell, through all artifacts, each in a
    fresh process on the same examples; every other round backwards, so that a machine that slowly heats up favours
    nobody. In round 0 one session of each runtime and count of threads (that of ``real``, or else of the first
    workload) goes on over the whole test split for the scores, which the rows of all its workloads have. ``agreement``
    and ``kl`` compare with the ``baseline`` artifact in onnxruntime on the CPU, ``agreement_onnx`` with the same
    artifact there; ``score(logits, labels)`` is the task's.

    ``out/raw/`` keeps what each process found, and a second call reuses it, in whole rounds of a cell: a ratio is of
    times taken side by side. A process that crashes or exceeds ``timeout_s`` ends its artifact in that cell, and the
    row says so; nothing of it is kept. A runtime that is not installed gets one row per artifact, with the command
    that installs it. Raises ``BenchError`` for an unknown runtime or workload, or unreadable inputs.
    """
    (out / "raw").mkdir(parents=True, exist_ok=True)
    labels = {artifact.name: load_inputs(artifact.inputs).labels for artifact in artifacts}
    usable = host.usable_threads()
    counts = dict.fromkeys(min(count, usable) for count in threads)
    cells = {
        runtime: [Cell(runtime, count, workload) for count in counts for workload in asked_of(workloads, runtime)]
        for runtime in runtimes
    }
    every_cell = [cell for its_cells in cells.values() for cell in its_cells]
    scoring = _scoring(every_cell)
    refused = _refused(artifacts, cells, host)
    contents = functools.cache(functools.partial(_contents, host=host))
    jobs = {
        (cell, artifact.name): _jobs(
            artifact, cell, rounds, calls, out / "raw", contents(artifact, cell.runtime), host, cell in scoring
        )
        for cell in every_cell
        for artifact in artifacts
        if (cell, artifact.name) not in refused
    }
    figures, failed = _run(jobs, rounds, timeout_s, progress, host)

    table: list[Row] = []
    logits: dict[tuple[str, str, int], Logits] = {}
    for cell in every_cell:
        for artifact in artifacts:
            place = (cell, artifact.name)
            size = artifact.size_bytes(cell.runtime) or None
            if reason := refused.get(place, failed.get(place)):
                table.append(rows.empty(artifact.name, cell, size, reason))
            elif place in figures and size is not None:
                table.append(rows.measured(artifact.name, cell, size, calls, figures[place], artifact.int8))
                if (found := launch.logits(Path(jobs[place][0].job["samples"]))) is not None:
                    logits[artifact.name, cell.runtime, cell.threads] = found
    rows.compare(table, baseline)
    rows.add_scores(table, logits, labels, (baseline, REFERENCE_RUNTIME), score)
    return table


@dataclass(frozen=True)
class _Job:
    job: dict[str, Any]
    digest: str


Place = tuple[Cell, str]  # a cell, and an artifact's name


def _refused(
    artifacts: Sequence[Artifact], cells: Mapping[str, Sequence[Cell]], host: hosts.Host
) -> dict[Place, str | None]:
    """What is not even tried, and why; ``None``: no row either, since the runtime's first cell says it for all."""
    found: dict[Place, str | None] = {}
    for runtime, its_cells in cells.items():
        command = host.availability(runtime)
        file = runtime_table.entry(runtime).file
        for cell in its_cells:
            fixed_length(cell.workload)
            for artifact in artifacts:
                if command is not None:
                    found[cell, artifact.name] = f"skipped: {command}" if cell == its_cells[0] else None
                elif artifact.file(runtime) is None:
                    extra = runtime_table.entry(runtime).extra
                    absent = f"there is no {file} of {artifact.name}" + (f"; what makes it: {extra}" if extra else "")
                    found[cell, artifact.name] = artifact.lacking.get(runtime, absent)
    return found


def _scoring(cells: Sequence[Cell]) -> set[Cell]:
    """The cell of each runtime and count of threads that scores: at real lengths, or else the first."""
    found: dict[tuple[str, int], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.workload != "real"):
        found.setdefault((cell.runtime, cell.threads), cell)
    return set(found.values())


def _contents(artifact: Artifact, runtime: str, host: hosts.Host) -> dict[str, str]:
    """What a result depends on besides the job: the files' SHA-256, and what the host says of itself."""
    hashes = {file.name: store.sha256(file) for file in [*artifact.files(runtime), artifact.inputs]}
    return {**hashes, **host.identity(runtime_table.entry(runtime).package)}


def _jobs(
    artifact: Artifact,
    cell: Cell,
    rounds: int,
    calls: int,
    raw: Path,
    contents: dict[str, str],
    host: hosts.Host,
    score: bool,
) -> list[_Job]:
    """One job per round; the first scores, if any is to."""
    made = []
    for number in range(rounds):
        job: dict[str, Any] = {
            "runtime": cell.runtime,
            "model": str(artifact.file(cell.runtime)),
            "inputs": str(artifact.inputs),
            "workload": cell.workload,
            "threads": cell.threads,
            "cpus": host.pick_cpus(cell.threads),
            "calls": calls,
            "warmup": {**child.WARMUP, **runtime_table.entry(cell.runtime).warmup},
            "score": score and number == 0,
            "samples": str(launch.samples_file(raw, artifact.name, cell, number)),
        }
        if artifact.session and cell.runtime == REFERENCE_RUNTIME:
            job["session"] = dict(artifact.session)
        made.append(_Job(job, launch.digest(job, contents)))
    return made


def _run(
    jobs: Mapping[Place, Sequence[_Job]], rounds: int, timeout_s: float, progress: Progress, host: hosts.Host
) -> tuple[dict[Place, Figures], dict[Place, str]]:
    """The figures of every place by round, and the reason of every place that failed."""
    figures: dict[Place, Figures] = {place: [] for place in jobs}
    failed: dict[Place, str] = {}
    calm_ns: int | None = None
    with progress.bar("bench", total=len(jobs) * rounds, unit="process") as advance:
        for number in range(rounds):
            for cell in dict.fromkeys(cell for cell, _ in jobs):
                places = [place for place in jobs if place[0] == cell and place not in failed]
                found = {place: launch.kept(jobs[place][number].job, jobs[place][number].digest) for place in places}
                whole = all(kept is not None for kept in found.values())
                for place in places if number % 2 == 0 else reversed(places):
                    result = found[place] if whole else None
                    try:
                        job = jobs[place][number]
                        result = result or host.launch(job.job, job.digest, timeout_s, calm_ns)
                    except launch.ChildFailed as error:
                        failed[place] = str(error)
                        progress.log(f"{place[1]} in {cell.runtime}, {cell.threads} threads, {cell.workload}: {error}")
                        advance(rounds - number)
                        continue
                    figures[place].append(result)
                    calm_ns = min(result["calm_ns"], calm_ns or result["calm_ns"])
                    advance(1, last=place[1], p50_ms=result["p50_ms"])
    return figures, failed
