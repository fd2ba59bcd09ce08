"""The command ``diagnose``. It imports torch, but only once it runs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from edgekd.cli.common import RUNS, Json, Store, plain_table, print_json, run_folder, stdout
from edgekd.progress import Progress

WORST = 10
"""How many quantizers are printed."""
NEXT_TO_NOTHING = 1e-4
"""Nats: by Pinsker's inequality such answers differ by 0.7 points of probability at most."""


class Kind(StrEnum):
    """The quantized students of a run."""

    qad = "qad"
    ptq = "ptq"


def diagnose(
    target: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A target, a run, or a run's folder; default: the latest run."),
    ] = None,
    kind: Annotated[
        Kind, typer.Option("--kind", help="The trained student, or the one that was calibrated.")
    ] = Kind.qad,
    examples: Annotated[int, typer.Option(min=1, help="How much of the validation split, drawn by class.")] = 256,
    store: Store = RUNS,
    json: Json = False,
) -> None:
    """Say which layers lose answers by quantization, and what more bits for the worst of them would cost.

    SQNR: a layer's output against its error, on float inputs. KL alone: how far answers move if only this is quantized;
    won back: how much closer they come if only this is not. All on validation examples, against the same weights in
    float: the fp32 student's, unless they were trained since. Proposed are layers to keep in float and, in a 4-bit run,
    layers to give eight bits (or float) by mixed. Attention's own products, which get their ranges after training, are
    measured in the exported file, against the same file with them in float. It is kept as diagnose.json in the run's
    folder.

    Examples:

    $ edgekd diagnose reuters_x86
    $ edgekd diagnose reuters_x86 --kind ptq --examples 1000
    $ edgekd diagnose reuters_x86 --json | jq .line
    """
    folder = run_folder(target, store, "stages.json")
    from edgekd import diagnose as diagnosis

    found = diagnosis.diagnose(folder, kind.value, examples, Progress())
    if json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    console = stdout()
    kind = "PTQ, which no epoch under quantization bettered" if found["untrained"] else found["kind"].upper()
    about = f"{kind}, {found['scheme']}, {found['examples']} validation examples"
    console.print(f"{about}: KL(float ‖ quantized) {found['kl']:.3g} nats\n", markup=False)
    layers = [(row["layer"], _decibels(row["sqnr_db"]), *_kl(row)) for row in found["layers"]]
    console.print(_table(("layer", "SQNR (dB)", "KL alone", "won back"), layers))
    quantizers = [(row["quantizer"] + _more(row["layers"]), *_kl(row)) for row in found["quantizers"]]
    console.print()
    _print_worst(console, "quantizer", quantizers)
    console.print()
    products = found["products"]
    if products:
        console.print(
            f"products of attention, in the exported file: KL(in float ‖ in int8) {products['kl']:.3g} nats\n"
        )
        _print_worst(console, "product", [(row["layer"], *_kl(row)) for row in products["layers"]])
        _print_worst(console, "quantizer", [(row["quantizer"], *_kl(row)) for row in products["quantizers"]])
        console.print()
    kept = [_proposed(row) for row in (*found["keep_float"], *(products["keep_float"] if products else ()))]
    if not kept:
        console.print("No layer wins back a tenth of the KL by itself: nothing to keep in float.")
        return
    if found["kl"] < NEXT_TO_NOTHING:
        console.print(
            f"All of it is {found['kl']:.2g} nats, next to nothing: there is little to win by what follows.\n"
        )
    console.print(_table(("worth keeping in float", "KL left", "won back", "bytes", "ms"), kept))
    console.print(f"\nbytes: predicted; ms: {found['ms_from']}\n\n{found['line']}", markup=False, soft_wrap=True)
    if found["mixed_line"]:
        rows = [(row["layer"], row["scheme"], *_proposed(row)[1:]) for row in found["mixed"]]
        console.print("\nor, in fewer bytes (ms: as dynamic quantization does to the teacher):\n", markup=False)
        console.print(_table(("worth more bits", "scheme", "KL left", "won back", "bytes", "ms"), rows))
        console.print(f"\n{found['mixed_line']}", markup=False, soft_wrap=True)


def _print_worst(console: Any, kind: str, rows: Sequence[tuple[str, ...]]) -> None:
    console.print(_table((kind, "KL alone", "won back"), rows[:WORST]))
    if len(rows) > WORST:
        console.print(f"and {len(rows) - WORST} more in diagnose.json")


def _proposed(row: dict[str, Any]) -> tuple[str, ...]:
    return row["layer"], f"{row['kl']:.3g}", f"{row['share']:.0%}", f"{row['bytes']:+,}", _ms(row["ms"])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = plain_table()
    for place, title in enumerate(head):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _kl(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['alone']:.3g}", f"{row['won_back']:.3g}"


def _more(layers: list[str]) -> str:
    return f" (and {len(layers) - 1} more)" if len(layers) > 1 else ""


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"
