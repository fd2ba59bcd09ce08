"""The command that chooses by measuring: ``tune``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from edgekd import session
from edgekd.cli.common import (
    RUNS,
    Json,
    Smoke,
    Store,
    TargetName,
    interruptible,
    load,
    mebibytes,
    plain_table,
    print_json,
    stdout,
)
from edgekd.progress import Progress
from edgekd.tuning.candidates import DEFAULT, OWN

VERDICTS = {"score": "beyond the score budget", "same": "no difference shown"}


def tune(
    target: TargetName,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of fresh processes; below 5 nothing is VALID.")] = 5,
    calls: Annotated[int, typer.Option(min=1, help="Timed calls a round; below 100 nothing is VALID.")] = 100,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Try this one beside the target's own; repeatable."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Time anew instead of taking up what was timed.")] = False,
    smoke: Smoke = False,
    store: Store = RUNS,
    json: Json = False,
) -> None:
    """Time other placements of a trained student, and session options, on this machine; say which is fastest.

    Needs the distill stage (`edgekd run TARGET --to distill`) and trains nothing: the student is calibrated in each
    placement, exported, timed and scored on the validation split. What is surely faster within the score budget is
    chosen; tune.json in the run's folder keeps the evidence. Your target file is not touched: the lines to paste are
    printed. Session options that win ship with the next `edgekd run` of a target with the chosen placement; not where
    this machine only stands in for the target's device (host-proxy).

    Examples:

    $ edgekd tune reuters_x86
    $ edgekd tune ./my_target.py --rounds 9 --calls 200
    $ edgekd tune reuters_x86 --only attention_int8 --only no_prepacking
    $ edgekd tune reuters_x86 --again --json
    """
    from edgekd.tuning import tune as tuning

    found_target, path = load(target, smoke)
    progress = Progress()
    with interruptible(progress, "what was exported and timed is kept, and the same command goes on from there"):
        found = tuning.tune(
            found_target,
            store,
            beside=path,
            rounds=rounds,
            calls=calls,
            only=only or (),
            again=again,
            progress=progress,
        )
    if json:
        print_json(found)
    else:
        _print(found)


def _print(found: Mapping[str, Any]) -> None:
    from edgekd.report import figures, limits

    console = stdout()
    if (proxy := limits.proxy(found["machine"], {"name": found["device"], "missing": found["missing"]})) is not None:
        console.print(f"{proxy}\n", markup=False, soft_wrap=True)
    mark = f", {figures.PROXY}" if proxy else ""
    for kind, name in (("placement", "placements"), ("session option", "session"), ("once more", "confirmed")):
        if found[name]:
            console.print(_table(kind, found[name], mark))
            console.print()
    chosen = found["chosen"]
    least, teacher = (f"{100 * found[name]:.2f} %" for name in ("least_score", "teacher_score"))
    lines = [*_remarks(found), f"score asked for on validation: {least} (the teacher has {teacher})"]
    tried = [row["verdict"] for row in (*found["placements"], *found["session"]) if row["name"] not in (OWN, DEFAULT)]
    if tried and set(tried) == {"INVALID"}:
        lines.append("NOTHING WAS DECIDED: no row is valid; tune again with --again, with nothing else running")
    lines.append(f"placement: {chosen['name']}")
    lines += ["paste into the target file:", *(f"    {line}" for line in chosen["lines"])] if chosen["lines"] else []
    kept = f" ({figures.PROXY}: they do not ship)" if proxy and chosen["session"] else ""
    lines.append(f"session options: {session.text(chosen['session'])}{kept}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _table(kind: str, rows: Iterable[Mapping[str, Any]], mark: str) -> Table:
    """``mark`` is added to the heads of what is this machine's."""
    timed = (f"{head}{mark}" for head in ("p50 (ms)", "times as fast"))
    table = plain_table(kind, *timed, "validation", "size", f"peak RSS (MiB){mark}", "verdict")
    for row in rows:
        verdict = VERDICTS.get(row["verdict"], row["verdict"]) + ("" if row.get("choosable", True) else " *")
        if row.get("p50_ms") is None:
            table.add_row(row["name"], *["-"] * 5, verdict)
            continue
        score = "-" if row["score"] is None else f"{100 * row['score']:.2f} %"
        p50, ratio = (_span(row, name, unit) for name, unit in (("p50", "_ms"), ("ratio", "")))
        rss = f"{row['peak_rss_mib']:.1f}"
        table.add_row(row["name"], p50, ratio, score, mebibytes(row["size_bytes"]), rss, verdict)
    return table


def _remarks(found: Mapping[str, Any]) -> Iterator[str]:
    """What the tables' verdicts leave out."""
    rows = [*found["placements"], *found["session"], *found["confirmed"]]
    for row in rows:
        if row.get("why") or row["verdict"] == "INVALID":
            yield f"{row['verdict']}: {row['name']}: {row.get('why') or row['why_invalid']}"
    if any(not row["choosable"] for row in found["placements"]):
        yield "* for information: not for this device and its runtimes, or only with another student"


def _span(row: Mapping[str, Any], name: str, unit: str) -> str:
    value, low, high = (row[f"{name}{end}{unit}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
