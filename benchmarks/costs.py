"""What a training step of each way to teach takes: seconds and memory, against plain KL.

    python benchmarks/costs.py TARGET [--store runs] [--recipes NAME...] [--rounds 3] [--steps 30]

The students are those of ``distillation.py``, which must have made the target's cells of the first seed in that store;
they train on for some steps under the same losses and the same teacher, in fp32 and under fake-quantization, each in a
fresh fork of this process. Memory is what the fork's own (``RssAnon``) grew by until the last step, at which the
allocator still holds what the largest step needed. In each round every recipe runs once, and its time is divided by
plain KL's in the same round; the figure is the median over the rounds. Rows are kept, with the machine, in
benchmarks/results/costs.json; ``distillation.py --table`` shows them.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from catalogue import MOST, RECIPES
from distillation import BATCH, QUIET, RATE, SHORT, lesson, loaded, taught
from label_store import resident

from edgekd import machine, spec
from edgekd.distill import loop
from edgekd.quant.calibrate import batches, calibrate_on, calibration_rows
from edgekd.stages import quantize
from edgekd.store import Context, write_json

RESULTS = Path(__file__).parent / "results" / "costs.json"
PLAIN, SEED, WARM_UP = "KL", 1, 5
KINDS = ("fp32", "int8")


def main() -> None:
    """Measure every recipe and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(MOST), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.set_defaults(threads=1, device="cpu")  # neither more threads nor CUDA survive a fork
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    labels = [n for n in dict.fromkeys((PLAIN, *given.recipes)) if not (RECIPES[n].task and given.target in SHORT)]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(given.rounds):
        for label in labels:
            for kind in KINDS:
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    found.setdefault((label, kind), []).append(pool.apply(cost, (label, kind, given)))
            print(f"round {turn + 1}: {label}", flush=True)
    rows = [row(label, found) for label in labels]
    write_json(RESULTS, {"cpu": machine.cpu_model(), "target": given.target, "rounds": given.rounds, "rows": rows})
    for one in rows:
        print(", ".join(f"{name} {value:.3g}" if name != "recipe" else str(value) for name, value in one.items()))


def row(label: str, found: dict[tuple[str, str], list[tuple[float, float]]]) -> dict[str, Any]:
    """A recipe's seconds a step, how many times plain KL's they are, and MiB more than plain KL takes."""
    figures: dict[str, Any] = {"recipe": label}
    for kind in KINDS:
        pairs = list(zip(found[label, kind], found[PLAIN, kind], strict=True))
        figures[f"{kind} step_s"] = statistics.median(own[0] for own, _ in pairs)
        figures[f"{kind} times"] = statistics.median(own[0] / plain[0] for own, plain in pairs)
        figures[f"{kind} mib"] = statistics.median(own[1] - plain[1] for own, plain in pairs)
    return figures


def cost(label: str, kind: str, given: Any) -> tuple[float, float]:
    """Seconds of a step (median) and MiB that training took, of the recipe's student in fp32 or under quantization."""
    line = taught(given.target, RECIPES[label], SEED, RATE, given)
    model, tokens, data = loaded(line)
    begun = resident()[0]
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context(Path(folder), "cpu", given.threads, QUIET)
        asked = line["quantize"].inputs
        if kind == "int8":
            quantize.prepare(model, asked["quant"])
            rows = calibration_rows(asked["calibration_ids"], data.train.ids, everything=True)
            calibrate_on(model, asked["quant"], batches(tokens["taught"], rows[:BATCH]))
        task, _ = lesson(line, model, tokens, data, SEED, ctx)
        stamps: list[float] = []
        size: list[float] = []

        def before(step: int, last: int) -> None:
            task.before_step(step, last)
            stamps.append(time.perf_counter())

        def judge() -> dict[str, float]:
            stamps.append(time.perf_counter())
            size.append(resident()[0])
            return {"score": 0.0}

        timed = replace(task, before_step=before, evaluate=judge, rank=lambda result: 0.0)
        examples = task.tokens if task.rows is None else task.rows
        epochs = given.steps / loop.steps_per_epoch(len(examples), BATCH)
        options = spec.Optimizer(learning_rate=RATE, batch_size=BATCH)
        loop.fit(timed, epochs=epochs, options=options, seed=SEED, out=ctx.out, progress=QUIET)
    steps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    return statistics.median(steps[WARM_UP:]), size[-1] - begun


if __name__ == "__main__":
    main()
