"""The command that puts runs side by side."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgekd.cli.common import RUNS, Json, Store, print_json, run_folder
from edgekd.cli.line import Format


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.")],
    others: Annotated[list[str], typer.Argument(metavar="RUN...", help="The runs to compare it with.")],
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.md,
    store: Store = RUNS,
    json: Json = False,
) -> None:
    """Put two or more runs side by side: every figure, and which differences from the first are more than noise.

    Examples:

    $ edgekd compare reuters_x86 my_target
    $ edgekd compare runs/reuters_x86 /elsewhere/runs/reuters_x86
    $ edgekd compare first second third --format html > compare.html
    """
    from edgekd.report import compare as comparing
    from edgekd.report import html, schema

    reports = [schema.load(run_folder(name, store) / "report.json") for name in (first, *others)]
    if json or format is Format.json:
        print_json(comparing.compare(reports))
    else:
        page = format is Format.html
        sys.stdout.write(html.render_comparison(reports) if page else comparing.render(comparing.compare(reports)))
