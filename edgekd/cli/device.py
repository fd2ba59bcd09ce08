"""``bench``: a bundle on a device, or on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.bundles import Bundle
from edgekd.cli.common import RUNS, Json, Store, interruptible, print_json
from edgekd.errors import UsageError
from edgekd.progress import Progress

UNITS = {"s": 1, "m": 60, "h": 3600}


def bench(
    bundle: Bundle,
    on: Annotated[
        str | None, typer.Option("--on", metavar="ssh://USER@HOST[:PORT]", help="The device; default: this machine.")
    ] = None,
    sustained: Annotated[
        str | None, typer.Option(metavar="10m", help="Then call it without a pause for so long: what heat does.")
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option(help="What to measure; default: teacher_fp32, student_fp32 and student_qad. Repeatable."),
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="In which runtimes; default: those of the run. Repeatable.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: as in the run.")] = None,
    calls: Annotated[int | None, typer.Option(min=1, help="Timed calls a round; default: as in the run.")] = None,
    name: Annotated[str | None, typer.Option(help="What the report calls it; default: its CPU or board.")] = None,
    python: Annotated[
        str,
        typer.Option(
            help="Python there (3.11 or later), e.g. that of an environment in the home there: bench/bin/python."
        ),
    ] = "python3",
    folder: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where on it the temporary folder is made; default: as it says.")
    ] = None,
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, help="Another configuration of ssh (its -F).")
    ] = None,
    store: Store = RUNS,
    json: Json = False,
) -> None:
    """Measure a shipped bundle on a device, by the rules of the run's own bench, and take its rows into the report.

    The device needs Linux, Python 3.11 with numpy, and onnxruntime or ai-edge-litert; and a key of yours, since no
    password is asked for. Copied there are the models, the tokenized test split and the harness, into a temporary
    folder that is removed at the end, or when the connection breaks. The teacher and the fp32 student come from the
    run's store (--store); without it the bundle is measured alone. Every process's samples come back at once: the same
    command goes on where it was interrupted.

    Exits with 12 where a package is missing there, with 13 if the device cannot be reached, with 14 if it was lost
    meanwhile, with 15 if it cannot measure this bundle: another architecture, an old Python, too little memory.

    Examples:

    $ edgekd bench dist/reuters_rpi5 --on ssh://pi@192.168.1.7
    $ edgekd bench dist/reuters_rpi5 --on ssh://pi@raspberrypi:2222 --python bench/bin/python --sustained 10m
    $ edgekd bench dist/reuters_rpi5 --on ssh://pi@raspberrypi --artifact student_qad --runtime litert
    $ edgekd bench dist/reuters_x86
    """
    from edgekd.remote import bench as benching
    from edgekd.remote import ssh

    if on is None:
        if python != "python3" or ssh_config is not None:
            raise UsageError("--python and --ssh-config are for a device; give --on too")
        where, command = None, ssh.here()
    else:
        address = ssh.parse(on)
        where, command = str(address), ssh.command(address, python, ssh_config)
    asked = benching.Asked(
        artifacts=tuple(artifact or benching.DEFAULT),
        runtimes=tuple(runtime) if runtime else None,
        rounds=rounds,
        calls=calls,
        sustained_s=None if sustained is None else seconds(sustained),
        name=name,
        folder=folder,
    )
    progress = Progress()
    with interruptible(
        progress, "what was measured is kept, and nothing is left on the device: the same command goes on"
    ):
        found = benching.bench(bundle, where, command, asked, store, progress)
    if json:
        print_json(found)
        return
    for line in benching.lines(found):
        print(line)


def seconds(text: str) -> float:
    """``10m`` -> 600. Raises ``UsageError`` for what is no time."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no length of time; write for example 90s, 10m or 1h")
    return float(match[1]) * UNITS[match[2]]
