"""The ``edgekd`` command: its table of commands, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from edgekd import __version__
from edgekd.cli import bundles, device, line, tools, tuning
from edgekd.cli.comparison import compare
from edgekd.cli.diagnosis import diagnose
from edgekd.errors import EdgekdError
from edgekd.store import disk_full, full_disk_error

COMMANDS: dict[str, Callable[..., None]] = {
    "list": line.list_targets,
    "plan": line.plan,
    "run": line.run,
    "report": line.report,
    "compare": compare,
    "tune": tuning.tune,
    "ship": bundles.ship,
    "verify": bundles.verify,
    "bench": device.bench,
    "predict": bundles.predict,
    "diagnose": diagnose,
    "copy": tools.copy,
    "doctor": tools.doctor,
}

CHATTY = ("brevitas", "torch", "transformers")
"""Libraries whose Python warnings speak to their own developers; no command passes them on."""

app = typer.Typer(
    name="edgekd",
    help="Turn a large teacher into a small int8 ONNX student for one device, and prove it.",
    epilog="Try: edgekd list, edgekd plan reuters_x86, edgekd run reuters_x86 --smoke, edgekd report",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)
for name, command in COMMANDS.items():
    app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"edgekd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` is without the program's name (default: the process's own).

    An ``EdgekdError`` becomes its message on stderr and its exit code (``edgekd/errors.py`` lists them), ctrl-C or
    SIGTERM 130.
    """
    for library in CHATTY:
        warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
    try:
        app(args=list(sys.argv[1:] if argv is None else argv), prog_name="edgekd")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EdgekdError as error:
        return _fail(error)
    except OSError as error:
        if disk_full(error):
            return _fail(full_disk_error(error))
        raise
    return 0


def _fail(error: EdgekdError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
