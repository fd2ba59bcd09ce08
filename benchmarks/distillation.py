"""What each way to teach buys: the catalogue on equal terms, in fp32 and under quantization.

    python benchmarks/distillation.py TARGET... [--store runs] [--recipes NAME...] [--seeds 1 2 3] [--threads N]
    python benchmarks/distillation.py TARGET --pilot [--recipes NAME...]
    python benchmarks/distillation.py --table

Every recipe (``catalogue.py``) teaches the same student, 2 layers of 64 channels cut from the target's teacher, in
STEPS steps of BATCH labelled documents, then in QAT_STEPS more under the target's quantization. A training keeps its
best epoch on validation, as the pipeline does: by KL to the teacher, or by score where no teacher is in the losses. The
test split is scored once a student. ``--pilot`` tries learning rates and weights, on validation, by a seed of its own;
from it come RATE and the weights in the catalogue. Cells are kept in benchmarks/results/distillation.json, students in
STORE; what is there is not made again, and one process for each target may run beside others. "born again" and "an
assistant" train two students for STEPS steps each, "the backbone first" three epochs before its STEPS; all others one.
With a GPU every recipe runs on every target; without one what two cores finish in under three hours, a process each:
catalogue.MOST on R52, catalogue.SUBSET elsewhere. What a step takes is measured apart (``costs.py``).
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from catalogue import MOST, RECIPES, SUBSET, Recipe
from linear import bag_of_words, beginning
from numpy.typing import NDArray
from scipy.stats import ttest_ind

from edgekd import catalog, machine, pipeline, runner, spec
from edgekd.distill import evaluate, loop
from edgekd.progress import Progress
from edgekd.quant.calibrate import batches, calibrate_on, calibration_rows
from edgekd.stages import distill, quantize
from edgekd.stages.common import answering, load_stage_model, read_data, set_lesson, tokenise_splits
from edgekd.store import Context, Stage, read_json, write_json

STEPS, QAT_STEPS, BATCH = 1000, 250, 32
RATE, QAT_RATE = 2e-3, 3e-4
STUDENT = {"layers": 2, "hidden": 64, "heads": 2, "ffn": 256}
TAPS = ("logits", "attention:uniform/2", "hidden:all", "pooled")
"""All that any loss of the catalogue looks at: one label store serves them."""
RESULTS, COSTS = (Path(__file__).parent / "results" / name for name in ("distillation.json", "costs.json"))
PILOT_SEED, PILOT_RATES, PILOT_WEIGHTS = 0, (4e-4, 1e-3, 2e-3, 4e-3), (0.1, 1.0, 10.0)
WHOLE = "reuters52_x86"
"""On which nearly every recipe runs, also without a GPU."""
SHORT = ("tweets_x86",)
"""Whose documents have no windows."""
LINEAR = ("bag of words", "bag of words, whole documents")
SHARES = ("score", "agreement")
QUIET = Progress(quiet=True)
Lesson = tuple[loop.Task, spec.Quant]


def main() -> None:
    """Make the cells that are missing, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="NAME", help="instead of all, or the subset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=machine.usable_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pilot", action="store_true", help="try rates and weights on validation")
    parser.add_argument("--table", action="store_true", help="only show what is there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    on = torch.cuda.get_device_name() if given.device == "cuda" else machine.cpu_model()
    where = {"on": on, "threads": given.threads}
    for name in () if given.table else given.targets:
        if given.pilot:
            pilot(name, given)
            continue
        done = {(cell["recipe"], cell["seed"]) for cell in recorded() if cell["target"] == name}
        labels = given.recipes or (RECIPES if given.device == "cuda" else MOST if name == WHOLE else SUBSET)
        for seed, label in itertools.product(given.seeds, labels):
            recipe = RECIPES[label]
            if (label, seed) not in done and not (recipe.task and name in SHORT):
                line = taught(name, recipe, seed, RATE, given)
                cell = {"target": name, "recipe": label, "seed": seed} | where | scored(line, name, label, seed, given)
                keep(cell)
                print(told(cell), flush=True)
        for label in (label for label in LINEAR if (label, 0) not in done):
            line = taught(name, RECIPES["KL"], given.seeds[0], RATE, given)
            keep({"target": name, "recipe": label, "seed": 0} | where | linear(line, label == LINEAR[0]))
    if not given.pilot:
        print(LEGEND, *table(recorded()), sep="\n")


def taught(name: str, recipe: Recipe, seed: int, rate: float, given: Any) -> dict[str, runner.Step]:
    """The line of ``recipe`` walked to its fp32 student: every seed under the same teacher and the same labels."""
    target = catalog.load(name)
    own = replace(target.student, max_length=None)  # all read as many tokens as their teacher
    target = replace(
        target,
        task=replace(target.task, **{"transfer_words": None} | recipe.task),
        student=replace(own, **STUDENT),
        assistants=tuple(replace(own, **shape) for shape in recipe.assistants),
        distill=spec.Distill(losses=recipe.losses, **recipe.distill),
    )
    planned = {step.name: step for step in pipeline.steps(target, given.store, beside=catalog.path_of(name))}
    sources: Any = planned["assets"].inputs["source_fingerprints"]
    ids: Any = planned["quantize"].inputs["calibration_ids"]
    read = [planned[name] for name in ("assets", "transfer") if name in planned]
    walk([*read, planned["teacher"]], given)
    data, how = read_data(target.task, read[-1].stage), target.distill
    examples = len(data.taught) + len(data.train) * (how.augment.copies if how.augment else 0)
    examples = max(1, round(examples * (how.select.share if how.select else 1.0)))
    options = spec.Optimizer(learning_rate=rate, batch_size=BATCH)
    epochs = STEPS / math.ceil(examples / BATCH)
    target = replace(target, distill=replace(target.distill, epochs=epochs, optimizer=options))
    graph = pipeline.graph(target, sources, ids, {})
    for stage, inputs in graph.items():
        if stage.startswith("distill"):
            inputs["seed"] = seed
        if stage == "labels" and inputs["taps"]:
            inputs["taps"] = TAPS if not recipe.task else ("logits",)
    steps = runner.resolve(graph, given.store, pipeline.stage_revision)
    last = [step.name for step in steps].index("distill")
    walk(steps[: last + 1], given)
    return {step.name: step for step in steps}


def walk(steps: list[runner.Step], given: Any) -> None:
    """Make stages finished on this process's threads."""

    def context(out: Path) -> Context:
        return Context(out, given.device, given.threads, QUIET)

    runner.walk(steps, given.store, function=pipeline.stage_function, context=context, progress=QUIET)


def loaded(line: dict[str, runner.Step]) -> tuple[Any, dict[str, Any], Any]:
    """The fp32 student that a line made, the splits by its tokenizer, and the data."""
    asked = line["quantize"].inputs
    data = read_data(asked["task"], asked["assets"])
    model, tokenizer = load_stage_model(line["distill"].stage, data.labels)
    return model, tokenise_splits(tokenizer, data, asked["task"].max_length, ("taught", "validation", "test")), data


def lesson(line: dict[str, runner.Step], model: Any, tokens: Any, data: Any, seed: int, ctx: Context) -> Lesson:
    """``model`` under the losses and the teacher of its line once more, and how it is to train under quantization."""
    asked, stage = line["quantize"].inputs, line["distill"].stage
    how: spec.Distill = asked["distill_spec"]
    rows = np.load(stage.path / distill.ROWS) if (stage.path / distill.ROWS).exists() else None
    asks = partial(answering, line["teacher"].stage, data, stage.path / distill.TEACHER)
    peers = distill.load_peers(stage, data.labels)
    task, _ = set_lesson(ctx, "more", model, tokens, how, asked["labels"], asks, peers, seed, rows)
    epochs = QAT_STEPS / math.ceil(len(tokens["taught"] if rows is None else rows) / BATCH)
    options = spec.Optimizer(learning_rate=QAT_RATE, batch_size=BATCH)
    return task, replace(asked["quant"], epochs=epochs, optimizer=options)


def scored(line: dict[str, runner.Step], name: str, label: str, seed: int, given: Any) -> dict[str, Any]:
    """The fp32 student of a line and the one trained on under quantization, on the test split."""
    out = given.store / "comparison" / f"{name} {label} {seed}"
    out.mkdir(parents=True, exist_ok=True)
    ctx = Context(out, given.device, given.threads, QUIET)
    model, tokens, data = loaded(line)
    model.to(given.device)
    asked = line["quantize"].inputs
    truth = teacher_on_test(line["teacher"].stage, asked["task"], asked["assets"])

    def measured() -> dict[str, float]:
        return evaluate.compare(evaluate.logits(model, tokens["test"]), tokens["test"].labels, truth)

    validation = read_json(line["distill"].stage.path / "scores.json")["validation"]
    found: dict[str, Any] = {"teacher": accuracy(truth, data), "validation": validation, "fp32": measured()}
    quantize.prepare(model, asked["quant"])
    task, quant = lesson(line, model, tokens, data, seed, ctx)
    listed = batches(tokens["taught"], calibration_rows(asked["calibration_ids"], data.train.ids, everything=True))

    def observe() -> Any:
        return calibrate_on(model, quant, listed)

    observe()
    found["ptq"] = measured()
    distill.load_learned(task.module, line["distill"].stage)
    quantize.train(ctx, task, quant, seed, observe)
    shutil.rmtree(out)
    return found | {"int8": measured()}


def linear(line: dict[str, runner.Step], cut: bool) -> dict[str, Any]:
    """A bag of words of the size of a line's student, on the test split; ``cut``: of the tokens that students read."""
    asked, stage = line["quantize"].inputs, line["distill"].stage
    data = read_data(asked["task"], asked["assets"])
    truth = teacher_on_test(line["teacher"].stage, asked["task"], asked["assets"])
    read = beginning(load_stage_model(stage, data.labels)[1], asked["task"].max_length) if cut else str
    answers = bag_of_words(data, read_json(stage.path / "student.json")["parameters"], read)
    return {"teacher": accuracy(truth, data), "fp32": evaluate.compare(answers, data.test.labels, truth)}


@cache
def teacher_on_test(teacher: Stage, task: spec.TextClassification, assets: Stage) -> NDArray[np.float32]:
    """The teacher's logits (N, C) on the test split; worked out once, for it takes as long as training."""
    data = read_data(task, assets)
    model, tokenizer = load_stage_model(teacher, data.labels)
    return evaluate.logits(model, tokenise_splits(tokenizer, data, task.max_length, ("test",))["test"])


def accuracy(logits: NDArray[np.float32], data: Any) -> float:
    """The share of the test split that is right."""
    return float((logits.argmax(1) == data.test.labels).mean())


def pilot(name: str, given: Any) -> None:
    """Print how rates and weights do on validation."""
    tries = [(f"KL at rate {rate:g}", RECIPES["KL"], rate) for rate in PILOT_RATES]
    for label in given.recipes or RECIPES:
        first, *rest = RECIPES[label].losses
        for weight in PILOT_WEIGHTS if rest else ():
            weighed: Any = [replace(loss, weight=weight) for loss in rest]
            tries.append((f"{label}, weight {weight:g}", replace(RECIPES[label], losses=(first, *weighed)), RATE))
    for told, recipe, rate in tries:
        line = taught(name, recipe, PILOT_SEED, rate, given)
        found = read_json(line["distill"].stage.path / "scores.json")["validation"]
        print(f"{name} {told}: KL {1e3 * found['kl']:.1f}, score {found['score']:.2%}", flush=True)


def recorded() -> list[dict[str, Any]]:
    """The cells there are."""
    return list(read_json(RESULTS)["cells"]) if RESULTS.exists() else []


def keep(cell: dict[str, Any]) -> None:
    """Add a cell; other processes may do the same."""
    RESULTS.parent.mkdir(exist_ok=True)
    with (Path(tempfile.gettempdir()) / "edgekd-distillation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_json(RESULTS, {"cells": [*recorded(), cell]})


def told(cell: dict[str, Any]) -> str:
    """A cell in a line."""
    words = ", ".join(
        f"{kind} {found['score']:.2%} (agreement {found['agreement']:.2%}, KL {found['kl']:.4f})"
        for kind, found in cell.items()
        if isinstance(found, dict)
    )
    return f"{cell['target']} {cell['recipe']}, seed {cell['seed']}: {words}"


LEGEND = """Score, agreement with the teacher, KL to it: means and deviations over seeds, of the test split but for
validation, by which one chooses. *: Welch's t-test tells the seeds from plain KL's at 5 %. Step (plain KL's is 1) and
MiB more than plain KL's: in fp32 and under quantization, of one target."""


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table a target, whose columns ``LEGEND`` explains."""
    costs = {row["recipe"]: row for row in read_json(COSTS)["rows"]} if COSTS.exists() else {}
    for target in dict.fromkeys(cell["target"] for cell in cells):
        own = [cell for cell in cells if cell["target"] == target]
        plain = [cell for cell in own if cell["recipe"] == "KL"]
        on = " and ".join(sorted({cell["on"] for cell in own}))
        yield f"\n**{target}**, teacher {own[0]['teacher']:.2%}; on {on}\n"
        yield "| Recipe | validation | KL | fp32 | agreement | KL | int8 | agreement | KL | Seeds | Step | MiB |"
        yield f"| :-- |{' --: |' * 11}"
        for recipe in (*RECIPES, *LINEAR):
            group = [cell for cell in own if cell["recipe"] == recipe]
            if group:
                parts = [
                    spread(*([cell[kind] for cell in cells if kind in cell] for cells in (group, plain)), *names)
                    for kind, names in (("validation", ("score",)), ("fp32", SHARES), ("int8", SHARES))
                ]
                yield f"| {recipe} | {' | '.join(parts)} | {len(group)} | {' | '.join(cost(costs.get(recipe)))} |"


def cost(row: dict[str, float] | None) -> tuple[str, str]:
    """Two cells of a table: a step's time and memory."""
    if row is None:
        return "", ""
    return f"{row['fp32 times']:.2f}, {row['int8 times']:.2f}", f"{row['fp32 mib']:+.0f}, {row['int8 mib']:+.0f}"


def spread(found: list[dict[str, float]], plain: list[dict[str, float]], *names: str) -> str:
    """Cells of a table: mean and standard deviation of each of ``names`` in percent, then the mean of KL."""
    if not found:
        return " | ".join("" for _ in (*names, "kl"))
    told = []
    for name in names:
        own, other = (100 * np.array([one[name] for one in group]) for group in (found, plain))
        more = f" ± {own.std(ddof=1):.2f}" if len(own) > 1 else ""
        apart = min(len(own), len(other)) > 1 and ttest_ind(own, other, equal_var=False).pvalue < 0.05
        told.append(f"{own.mean():.2f}{more}{'*' if apart else ''}")
    return " | ".join((*told, f"{np.mean([one['kl'] for one in found]):.4f}"))


if __name__ == "__main__":
    main()
