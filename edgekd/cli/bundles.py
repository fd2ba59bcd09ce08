"""The commands around what is deployed: ``ship``, ``verify``, ``predict``. None needs torch."""

from __future__ import annotations

import dataclasses
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd import catalog
from edgekd.bundle import MODEL, verified
from edgekd.cli.common import RUNS, Json, Store, print_json, print_json_line, run_folder
from edgekd.errors import BundleError, UsageError
from edgekd.progress import Progress

ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Isa(StrEnum):
    """The instruction sets that ``edgekd.isa.cpus`` knows."""

    avx2 = "avx2"
    vnni = "vnni"
    arm64 = "arm64"


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
    bundle = shipping.ship(folder, out or Path("dist") / folder.name)
    if (note := shipping.session_note(folder)) is not None:
        Progress().log(note)
    print(bundle)


def verify(
    bundle: Bundle,
    files_only: Annotated[bool, typer.Option("--files-only", help="Only hash the files; do not score again.")] = False,
    isa: Annotated[
        Isa | None, typer.Option(help="Compare the answers on this instruction set with those here.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="With --isa: how much of the test split, drawn by class; default 256.")
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="With --isa arm64: fetch its Python if missing.")] = False,
    store: Store = RUNS,
    json: Json = False,
) -> None:
    """Prove a bundle: hash every file again, then score it again on the test split with onnxruntime.

    With --isa, run it on another instruction set instead, emulated by QEMU where this machine is none of that kind, and
    compare. The result is kept beside the run: the next `edgekd run` takes it into report and bundle.

    Exits with 11 if a file is missing or altered, if the score is not the one the bundle claims, or if the answers on
    the other instruction set differ; with 12, and the command that helps, where that cannot be run here.

    Examples:

    $ edgekd verify dist/reuters_x86
    $ edgekd verify dist/reuters_x86 --files-only
    $ edgekd verify dist/reuters_x86 --isa avx2
    $ edgekd verify dist/reuters_x86 --isa arm64 --install
    """
    from edgekd import ship as shipping

    if isa is None and install:
        raise UsageError("--install fetches what --isa arm64 needs; give that too")
    if isa is None and examples:
        raise UsageError("--examples is for --isa; without it the whole test split is scored")
    if isa is not None and files_only:
        raise UsageError("--files-only runs nothing and --isa does; leave one of them out")
    manifest = shipping.verify_files(bundle)
    if isa is not None:
        _verify_isa(bundle, manifest, isa.value, examples or 256, install, store, json)
        return
    result: dict[str, Any] = {"bundle": str(bundle), "files": "intact"}
    if not files_only:
        result |= shipping.rescore(bundle, Progress())
    if json:
        print_json(result)
    else:
        for name, value in result.items():
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


def _verify_isa(
    bundle: Path, manifest: dict[str, Any], isa: str, examples: int, install: bool, store: Path, json: bool
) -> None:
    from edgekd.isa import results, verify

    progress = Progress()
    rows = list(verify.verify(bundle, isa, examples, progress, install))
    run = store / manifest["run"]
    if run.is_dir():
        results.record(run, manifest["files"][MODEL]["sha256"], rows)
        target = manifest["target"] if manifest["target"] in catalog.targets() else f"./{manifest['target']}.py"
        again = f"edgekd run {target}{' --smoke' if manifest['smoke'] else ''}"
        progress.log(f"kept in {run / results.NAME}; `{again}` takes it into report and bundle")
    else:
        progress.log(f"not kept: there is no run {run} here for a report to take it from; give its folder with --store")
    if json:
        print_json({"bundle": str(bundle), "files": "intact", "isa": rows})
    else:
        print(f"bundle: {bundle}\nfiles: intact")
        for row in rows:
            print(verified(row))
    if other := [row["cpu"] for row in rows if not row["same"]]:
        raise BundleError(
            f"{bundle} answers otherwise on {isa} ({', '.join(other)}) than here; do not ship it to such CPUs"
        )


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
