"""The commands around a run: ``list``, ``plan``, ``run``, ``report``. None imports torch itself."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from edgekd import catalog, machine
from edgekd import plan as planning
from edgekd.cli.common import (
    RUNS,
    Fresh,
    Json,
    Smoke,
    Store,
    TargetName,
    To,
    interruptible,
    load,
    mebibytes,
    plain_table,
    print_json,
    run_folder,
    stdout,
)
from edgekd.errors import BudgetError, UsageError
from edgekd.progress import Progress, duration
from edgekd.store import read_json


class Device(StrEnum):
    """Where the torch stages run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    """How a report is printed."""

    md = "md"
    json = "json"
    html = "html"


def list_targets(store: Store = RUNS, json: Json = False) -> None:
    """Show every target: what it is, and how its last run ended; then the store's other runs.

    Examples:

    $ edgekd list
    $ edgekd list --json
    """
    said = {name: catalog.summary(name) for name in catalog.targets()}
    others = sorted(report.parent.name for report in store.glob("*/report.json"))
    said |= {name: f"a run in {store}" for name in others if name not in said}
    rows = [
        {"name": name, "summary": what, "budget": _ended(store / name / "report.json")} for name, what in said.items()
    ]
    if json:
        print_json(rows)
        return
    table = plain_table("target", "what it is", "budget")
    for row in rows:
        table.add_row(row["name"], row["summary"], row["budget"])
    stdout().print(table)


def _ended(report: Path) -> str:
    """How the run of this report ended, in a word."""
    try:
        return {True: "met", False: "FAILED", None: "undecided"}[read_json(report)["budget_met"]]
    except FileNotFoundError:
        return "not run"
    except (OSError, ValueError, KeyError, TypeError):
        return "unreadable"


def plan(
    target: TargetName,
    to: To = None,
    fresh: Fresh = None,
    smoke: Smoke = False,
    store: Store = RUNS,
    json: Json = False,
) -> None:
    """Say what a run would do, without doing it: what is reused, resumed or run; sizes, of labels too; time.

    Times are estimated once stages like these have run in the same store.

    Exits with 9 if the student is too big for the budget, however well it trains.

    Examples:

    $ edgekd plan reuters_x86
    $ edgekd plan ./my_target.py --fresh distill
    $ edgekd plan reuters_x86 --json
    """
    found_target, path = load(target, smoke)
    found = planning.plan(found_target, store, beside=path, fresh=fresh, to=to)
    if json:
        print_json(found)
    else:
        _print_plan(stdout(), found)
    if found["problems"]:
        raise BudgetError(f"target {found_target.name!r} cannot meet its budget: {'; '.join(found['problems'])}")


def _print_plan(console: Console, found: dict[str, Any]) -> None:
    table = plain_table("stage", "what happens", "key", "about")
    for entry in found["stages"]:
        seconds = entry["seconds"]
        about = "unknown" if seconds is None else "-" if entry["action"] == "reused" else duration(seconds)
        table.add_row(entry["stage"], entry["action"], entry["key"], about)
    console.print(table)
    teacher, student = found["teacher"], found["student"]
    proxy = f"; this machine is {machine.stand_in(found['stand_in'])}" if found["stand_in"] else ""
    lines = [f"time     {planned_time(found['stages'])}", f"device   {found['device']}{proxy}"]
    lines += [f"         {warning}" for warning in found["warnings"]]
    if found["black_box"]:
        lines.append(f"teacher  {found['black_box']}: a black box, asked when the run gets there")
    elif teacher:
        lines.append(f"teacher  {teacher['parameters']:,} parameters, {mebibytes(teacher['fp32_bytes'])} in fp32")
    else:
        lines.append("teacher  size unknown until it has been fetched (`edgekd run ... --to assets`)")
    if student:
        facts = {"layers": "{} layers", "hidden": "hidden {}", "heads": "{} heads", "ffn": "ffn {}"}
        shape = ", ".join(words.format(student[name]) for name, words in facts.items() if student[name])
        words = f"{shape}, {student['vocabulary']:,} tokens, of a text the first {student['max_length']}"
        lines.append(f"student  {student['parameters']:,} parameters ({words})")
        lines.append(f"         about {mebibytes(student['int8_bytes'])} as {student['scheme']}")
    else:
        lines.append("student  size unknown until what it is cut from is known")
    size = found["labels_bytes"]
    lines.append(
        f"labels   {'unknown until the data have been read' if size is None else 'at most ' + mebibytes(size)}"
    )
    console.print("\n" + "\n".join(lines), markup=False, soft_wrap=True)


def planned_time(stages: list[dict[str, Any]]) -> str:
    """How long the stages of a plan will take, as far as it is known."""
    known = sum(entry["seconds"] or 0 for entry in stages)
    first = ", ".join(entry["stage"] for entry in stages if entry["seconds"] is None)
    if not first:
        return f"about {duration(known)}"
    return f"about {duration(known)}, and that of {first}" if known else "unknown until such stages have run once"


def run(
    ctx: typer.Context,
    target: TargetName,
    to: To = None,
    fresh: Fresh = None,
    smoke: Smoke = False,
    device: Annotated[Device, typer.Option(help="Where to train: a GPU if torch sees one, or as told.")] = Device.auto,
    store: Store = RUNS,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The bundle's folder; default: dist/RUN.")
    ] = None,
    json: Json = False,
) -> None:
    """Walk a target's whole line: teacher to shipped quantized student, with a report. Finished stages are reused.

    Stages: assets, teacher, labels, distill, quantize, export, bench, verdict, ship.

    Interrupt it at any time: the same command resumes.

    Progress goes to stderr; the report's first lines and the paths go to stdout.

    Examples:

    $ edgekd run reuters_x86
    $ edgekd run reuters_x86 --smoke
    $ edgekd run ./my_target.py --to distill
    $ edgekd run reuters_x86 --fresh quantize --device cpu
    $ edgekd run reuters_x86 --json | jq .report
    $ torchrun --nproc-per-node 4 -m edgekd run big_target
    """
    from edgekd import pipeline, runner

    found_target, path = load(target, smoke)
    rank, _ = runner.ranks()
    progress = Progress(quiet=rank > 0)
    with interruptible(progress, f"finished stages are kept, and this resumes the rest: {_again(ctx)}"):
        result = pipeline.run(
            found_target, to=to, fresh=fresh, device=device.value, folder=store, out=out, beside=path, progress=progress
        )
    if rank > 0:
        return  # rank 0 tells it
    report = read_json(Path(result["report"])) if result["report"] else None
    if json:
        summary = {"headline": report["headline"], "budget_met": report["budget_met"]} if report else {}
        print_json(result | summary)
        return
    for line in report["headline"] if report else []:
        print(line)
    if result["report"]:
        print(f"report: {Path(result['report']).with_suffix('.html')}")
    if result["bundle"]:
        print(f"bundle: {result['bundle']}")
    if not result["report"]:
        last = list(result["stages"].values())[-1]
        print(f"stopped after {to}: {last['folder']}")


def _again(ctx: typer.Context) -> str:
    """The command that was given, but for ``--fresh``: what it was to forget is forgotten, and it would start over."""
    words = ["edgekd", str(ctx.info_name)]
    for option in ctx.command.params:
        name = str(option.name)
        source = ctx.get_parameter_source(name)
        if name == "fresh" or source is None or source.name != "COMMANDLINE":
            continue
        words += option.opts[:1] if option.param_type_name == "option" else []
        words += [] if ctx.params[name] is True else [str(ctx.params[name])]
    return shlex.join(words)


def report(
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A target, a run, or a run's folder; default: the latest run."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 9 unless every line of the budget is met.")] = False,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.md,
    read: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="First take in a phone's times.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --import: what to call it; default: as it says.")] = None,
    store: Store = RUNS,
) -> None:
    """Print the report of a run: the budget, every artifact side by side, sizes and limits.

    --import reads what the commands in a bundle's README.md leave: times on Android. Exits with 5 if it is damaged.

    Examples:

    $ edgekd report
    $ edgekd report reuters_x86 --check
    $ edgekd report reuters_x86-smoke --format json
    $ edgekd report reuters_x86 --format html > report.html
    $ edgekd report reuters_android_arm64 --import phone.txt
    """
    from edgekd.report import importing
    from edgekd.report.schema import load as load_report

    if name is not None and read is None:
        raise UsageError("--name is what to call a phone whose times are taken in; give --import too")
    folder = run_folder(target, store)
    folder = importing.read(read, folder, store, name).parent if read is not None else folder
    found = load_report(folder / "report.json")
    written = folder / f"report.{format.value}"
    sys.stdout.write(written.read_text(encoding="utf-8") if written.is_file() else _rendered(found, format))
    if check:
        _check(found)


def _rendered(report: Any, format: Format) -> str:
    """What the run wrote beside ``report.json``, where it has gone meanwhile."""
    from edgekd.report import html, markdown

    return html.render(report) if format is Format.html else markdown.render(report)


def _check(found: Any) -> None:
    open_lines = [line for line in found["budget"] if line["met"] is not True]
    if open_lines:
        words = {False: "failed", None: "undecided"}
        said = ", ".join(f"{line['name']} {words[line['met']]}" for line in open_lines)
        raise BudgetError(
            f"run {found['run']!r}: {len(open_lines)} of {len(found['budget'])} budget lines not met: {said}"
        )
