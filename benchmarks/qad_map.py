"""Where training under quantization earns its place: data x student size x bits, several seeds, PTQ against QAD.

    python benchmarks/qad_map.py TARGET... [--store runs] [--sizes own 2x64] [--seeds 1 2 3] [--threads N]
    python benchmarks/qad_map.py --draw

Each target's teacher and labels must be finished in the store (edgekd run TARGET --to labels). ``own`` is the target's
student (in the cells kept here four layers of 128 channels, R52's of 160, with 6,000 tokens on R8 and 8,000 elsewhere),
``2x64`` one of two layers and 64 channels. Bits are those of linear layers' weights / of their inputs; tables
keep eight. A seed draws another student; its PTQ is the best of those the quantize stage knows, chosen on validation;
QAD trains as many epochs as the target says, with learned scales. Every student is scored on the test split once.
Cells are kept in benchmarks/results/qad_map.json, students in STORE/TARGET/seeds; what is there is not made
again. Prints a table, and draws it (``--draw`` does only that) as benchmarks/results/qad_map.svg.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seeds import finished, interval, scores

from edgekd import machine
from edgekd.spec import Optimizer
from edgekd.store import read_json, write_json

BITS = ("8/8", "4/8", "3/8", "2/8", "4/4")
SMALL = {"layers": 2, "hidden": 64, "heads": 2, "ffn": 256}
RESULTS = Path(__file__).parent / "results" / "qad_map.json"
RATE = 3e-4
"""Learned scales' learning rate, chosen on R8's validation split by ``benchmarks/schedule.py``."""


def main() -> None:
    """Make the cells that are missing, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--sizes", nargs="+", choices=["own", "2x64"], default=["own", "2x64"])
    parser.add_argument("--bits", nargs="+", choices=BITS, default=BITS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=machine.usable_threads())
    parser.add_argument("--draw", action="store_true", help="only show what is there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    done = {tuple(cell[name] for name in ("target", "size", "bits", "seed")) for cell in recorded()}
    wanted = [(t, s, n, b) for t in given.targets for s in given.sizes for n in given.seeds for b in given.bits]
    for name, size, seed, bits in wanted if not given.draw else ():
        target, line, teacher = finished(name, given.store)
        if (target.name, size, bits, seed) in done:
            continue
        weight, activation = (int(number) if number != "8" else None for number in bits.split("/"))
        quant = replace(
            target.quant,
            weight_bits=weight,
            activation_bits=activation,
            scales="learned",
            optimizer=Optimizer(learning_rate=RATE),
        )
        student = replace(target.student, **SMALL) if size == "2x64" else target.student
        folder = given.store / target.name / "seeds" / size / str(seed)
        found = scores(line, folder, seed, given.threads, student, quant, f"quantize-{bits.replace('/', '-')}")
        cell = {"target": target.name, "size": size, "bits": bits, "seed": seed, "teacher": teacher, **found}
        write_json(RESULTS, {"cpu": machine.cpu_model(), "cells": [*recorded(), cell]})  # others may have written since
        print(f"{target.name} {size} {bits} seed {seed}: " + ", ".join(f"{k} {v:.2%}" for k, v in found.items()))
    rows = table(recorded())
    for row in rows:
        print(told(row))
    draw([row for row in rows if row["seeds"] > 2], RESULTS.with_suffix(".svg"))


def recorded() -> list[dict[str, Any]]:
    """The cells there are."""
    return list(read_json(RESULTS)["cells"]) if RESULTS.exists() else []


def table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a target, size and bits: means and half intervals, in points, over the seeds."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["target"], cell["size"], cell["bits"]), []).append(cell)
    rows = []
    for (target, size, bits), group in sorted(groups.items(), key=lambda item: (item[0][:2], BITS.index(item[0][2]))):
        fp32, ptq, qad = (100 * np.array([cell[kind] for cell in group]) for kind in ("fp32", "ptq", "qad"))
        row: dict[str, Any] = {"target": target, "size": size, "bits": bits, "seeds": len(group), "fp32": fp32.mean()}
        row |= {"lost by ptq": interval(fp32 - ptq), "lost by qad": interval(fp32 - qad), "won": interval(qad - ptq)}
        rows.append(row)
    return rows


def told(row: dict[str, Any]) -> str:
    """A row in words."""
    (ptq, ptq_half), (qad, qad_half), (won, won_half) = row["lost by ptq"], row["lost by qad"], row["won"]
    recovered = f", {won / ptq:.0%} of the loss recovered" if ptq >= 2 else ""
    return (
        f"{row['target']} {row['size']} {row['bits']} ({row['seeds']} seeds): fp32 {row['fp32']:.2f}; points lost: PTQ "
        f"{ptq:.2f} +- {ptq_half:.2f}, QAD {qad:.2f} +- {qad_half:.2f}; QAD over PTQ {won:.2f} +- {won_half:.2f}"
        f"{recovered}"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Points lost against bits, a panel for each target and size; one seed alone has no interval to show."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "qad_map"  # the same bytes from the same cells
    from matplotlib import pyplot

    sizes, targets = (list(dict.fromkeys(row[name] for row in rows)) for name in ("size", "target"))
    inches = 3 * len(targets), 0.4 + 2.6 * len(sizes)
    figure, axes = pyplot.subplots(len(sizes), len(targets), figsize=inches, sharey=True, squeeze=False)
    for ax, (size, target) in zip(axes.flat, product(sizes, targets), strict=True):
        shown = [row for row in rows if (row["target"], row["size"]) == (target, size)]
        for offset, (kind, colour) in enumerate((("ptq", "#b35900"), ("qad", "#1f5fa8"))):
            lost = np.array([row[f"lost by {kind}"] for row in shown]).reshape(-1, 2)
            places = np.arange(len(shown)) + 0.2 * offset - 0.1
            half = np.nan_to_num(lost[:, 1])
            ax.errorbar(places, lost[:, 0], half, fmt="o", capsize=3, color=colour, label=kind.upper())
        ax.set_xticks(range(len(shown)), [row["bits"] for row in shown])
        ax.set_title(f"{target} {size}", fontsize=9)
        ax.axhline(0, color="grey", linewidth=0.8)
    axes[0][0].set_ylabel("test points lost against fp32")
    axes[0][0].legend(frameon=False)
    figure.supxlabel("bits of weights / of activations", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
