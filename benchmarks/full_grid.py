"""Every artifact of a finished run, in both runtimes, at every length, on one thread and on all: a report's full grid.

    python benchmarks/full_grid.py RUN [--store runs] [--rounds 7] [--calls 100]

A target times what fits its budget of minutes; this times the rest too. RUN is a run's name or folder. Prints the
table that a report has, and keeps ``rows.json`` beside the samples in RUN/full_grid/: killed and started again, it goes
on where it stopped. Needs an idle machine: on a busy one the rows are INVALID.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgekd import machine, store
from edgekd.bench.measure import measure
from edgekd.cli.common import run_folder
from edgekd.errors import EdgekdError
from edgekd.progress import Progress
from edgekd.report import devices, markdown, schema
from edgekd.stages.bench import artifacts
from edgekd.tasks import text_classification

T = TypeVar("T")
RUNTIMES = ("ort_cpu", "openvino")
WORKLOADS = ("real", "fixed16", "fixed64", "fixed128")


def main() -> None:
    """Time what has not been timed yet, and print the table."""
    print(of_a_run(__doc__, grid))


def of_a_run(about: str | None, measured: Callable[[Path, int, int], T]) -> T:
    """``measured`` with the folder of the run that the command line names, how many rounds, and calls in each."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's name, or its folder")
    parser.add_argument("--store", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=100)
    given = parser.parse_args()
    try:
        return measured(run_folder(given.run, given.store), given.rounds, given.calls)
    except EdgekdError as error:
        raise SystemExit(f"error: {error}") from error


def grid(run: Path, rounds: int, calls: int) -> str:
    """The table, in Markdown, of the run in this folder; ``rounds`` fresh processes a row, of ``calls`` each."""
    report = schema.load(run / "report.json")
    export = run.parent / "store" / report["stages"]["export"]["folder"]
    rows = measure(
        artifacts(export),
        runtimes=RUNTIMES,
        threads=tuple(dict.fromkeys((1, machine.usable_threads()))),
        workloads=dict.fromkeys(RUNTIMES, WORKLOADS),
        rounds=rounds,
        calls=calls,
        out=run / "full_grid",
        progress=Progress(),
        score=text_classification.score,
    )
    here = devices.measured_on(devices.missing(report["device"], machine.fingerprint()))
    rows = [row | {"measured_on": here} for row in rows]
    store.write_json(run / "full_grid" / "rows.json", rows)
    told = {"rows": rows, "machine": {"cpu": machine.cpu_model()}, "training": report["training"]}
    return "\n\n".join(markdown.measurements(told))


if __name__ == "__main__":
    main()
