"""The commands around what is deployed: ``ship``, ``verify``, ``predict``. None needs torch."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.common import RUNS, Json, Store, print_json, print_json_line, run_folder
from edgekd.errors import UsageError
from edgekd.progress import Progress

ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A shipped folder, such as dist/reuters_x86.")]


def ship(
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A target, a run, or a run's folder; default: the latest run."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to; default: dist/RUN.")] = None,
    store: Store = RUNS,
) -> None:
    """Write the bundle of a finished run again: ONNX, tokenizer, model card, report, and a manifest of hashes.

    `edgekd run` ends with this; use it to write the bundle to another place.

    Examples:

    $ edgekd ship reuters_x86
    $ edgekd ship reuters_x86 --out /srv/models/topics
    """
    from edgekd import ship as shipping

    folder = run_folder(target, store)
    print(shipping.ship(folder, out or Path("dist") / folder.name))


def verify(
    bundle: Bundle,
    files_only: Annotated[bool, typer.Option("--files-only", help="Only hash the files; do not score again.")] = False,
    json: Json = False,
) -> None:
    """Prove a bundle: hash every file again, then score it again on the test split with onnxruntime.

    Exits with 11 if a file is missing or altered, or if the score is not the one the bundle claims.

    Examples:

    $ edgekd verify dist/reuters_x86
    $ edgekd verify dist/reuters_x86 --files-only
    """
    from edgekd import ship as shipping

    shipping.verify_files(bundle)
    result: dict[str, Any] = {"bundle": str(bundle), "files": "intact"}
    if not files_only:
        result |= shipping.rescore(bundle, Progress())
    if json:
        print_json(result)
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


def predict(
    bundle: Bundle,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Default: the lines of stdin.")] = None,
    json: Json = False,
) -> None:
    """Classify texts with a shipped bundle: label, probability and text, tab-separated, one line a text.

    Tabs and line ends inside a text are printed escaped; an empty line of stdin is a text like any other.

    Examples:

    $ edgekd predict dist/reuters_x86 "Crude oil prices rose sharply today."
    $ edgekd predict dist/reuters_x86 --json < documents.txt
    """
    from edgekd import deploy

    if not texts and sys.stdin.isatty():
        raise UsageError("no text given; write it after the bundle, or pipe one text a line into stdin")
    classify = deploy.load(bundle)
    for text in texts or (line.rstrip("\n") for line in sys.stdin):
        found = classify(text)[0]
        if json:
            print_json_line({"text": text, **dataclasses.asdict(found)})
        else:
            print(f"{found.label}\t{found.score:.4f}\t{text.translate(ESCAPES)}")
