"""What the commands share: their options, where results and messages go, and finding targets and runs."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgekd import catalog, spec
from edgekd.errors import INTERRUPTED, UsageError
from edgekd.progress import Progress
from edgekd.smoke import smoke as smoke_of

TargetName = Annotated[
    str, typer.Argument(metavar="TARGET", help="A name that `edgekd list` shows, or the path of a target file.")
]
Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="The folder that holds runs and finished stages.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Cut the target to minutes; the report is stamped SMOKE.")]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="STAGE",
        help="Stop after this stage: assets, teacher, labels, distill, quantize, export, bench, another that `edgekd "
        "plan` lists, or verdict.",
    ),
]
Fresh = Annotated[
    str | None, typer.Option("--fresh", metavar="STAGE", help="Do this stage and all after it again, from nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]

RUNS = Path("runs")


def stdout() -> Console:
    """Where results go: as wide as the terminal, or wide enough for every table in a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def print_json(value: object) -> None:
    """Print JSON data on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Print JSON data as one line on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def load(name: str, smoke: bool) -> tuple[spec.Target, Path]:
    """The target and its file."""
    target = catalog.load(name)
    return smoke_of(target) if smoke else target, catalog.path_of(name)


@contextmanager
def interruptible(progress: Progress, kept: str) -> Iterator[None]:
    """Let ctrl-C, or the SIGTERM of a scheduler, end long work with exit code 130 and a word on what is ``kept``."""
    heard = threading.current_thread() is threading.main_thread()  # no other may listen
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if heard else None
    try:
        yield
    except KeyboardInterrupt:
        progress.log(f"interrupted; {kept}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if heard:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def run_folder(name: str | None, store: Path, file: str = "report.json") -> Path:
    """The folder of a run that holds ``file``: by run or target name, target file, or path; without a name, the latest.

    Raises ``UsageError`` when there is none, and says how to make one.
    """
    what = "report" if file == "report.json" else "run"
    if name is None:
        found = sorted(store.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UsageError(f"there is no {what} in {store}; make one with `edgekd run TARGET`, or give its --store")
        return found[-1].parent
    path = Path(name)
    if (path / file).is_file():
        return path
    folder = store / (path.stem if path.suffix == ".py" else name)
    if not (folder / file).is_file():
        made = ", ".join(sorted(other.parent.name for other in store.glob(f"*/{file}"))) or "none"
        how = f"{name.removesuffix('-smoke')} --smoke" if name.endswith("-smoke") else name
        raise UsageError(f"there is no {what} in {folder} (runs with one: {made}); make it with `edgekd run {how}`")
    return folder


def plain_table(*heads: str) -> Table:
    """A table without lines, its heads in bold."""
    return Table(*heads, box=None, pad_edge=False, header_style="bold")


def mebibytes(count: float | None) -> str:
    """Bytes for people."""
    return "unknown" if count is None else f"{count / 2**20:.2f} MiB"
