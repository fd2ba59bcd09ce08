"""What another seed changes: students of one target, each by its own seed, under the same teacher and stored labels.

    python benchmarks/seeds.py TARGET [--store runs] [--seeds 1 2 3] [--threads N]

The target's teacher and labels must be finished in the store. Each seed draws another sample for surgery and another
order of the examples, in distillation and in quantized training. Three students are scored on the test split: fp32,
calibrated only (PTQ) and trained on under quantization (QAD), the last two as torch fake-quantizes them; nothing is
chosen by these scores. Kept in STORE/TARGET/seeds, so that a killed benchmark goes on. One line a seed, then means with
95% intervals (Student's t).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import stats

from edgekd import catalog, machine, pipeline, store
from edgekd.distill import evaluate
from edgekd.progress import Progress
from edgekd.spec import Quant, Student
from edgekd.stages import distill, quantize
from edgekd.stages.common import load_stage_model, read_data, tokenise_splits
from edgekd.store import Context, Stage

KINDS = ("fp32", "ptq", "qad")


def main() -> None:
    """Train and score a student by each seed, then print what they have in common."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=machine.usable_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    target, line, teacher = finished(given.target, given.store)
    print(f"teacher: {teacher:.2%}")
    found = []
    for seed in given.seeds:
        score = scores(line, given.store / target.name / "seeds" / str(seed), seed, given.threads)
        found.append([score[kind] for kind in KINDS])
        print(f"seed {seed}: " + ", ".join(f"{k} {v:.2%}" for k, v in score.items()) + kept(score["qad"], teacher))
    table = np.array(found)
    for name, values in (
        *zip(KINDS, table.T, strict=True),
        ("qad - fp32", table[:, 2] - table[:, 0]),
        ("qad - ptq", table[:, 2] - table[:, 1]),
    ):
        mean, half = interval(values)
        print(f"{name}: {100 * mean:.2f} +- {100 * half:.2f}" + kept(mean, teacher, name in KINDS))


def interval(values: Any) -> tuple[float, float]:
    """The mean of ``values``, (N,), and half of its 95% interval by Student's t; NaN of one value."""
    if len(values) == 1:
        return float(values[0]), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def finished(target: str, folder: Path) -> tuple[Any, dict[str, Any], float]:
    """A target, its line by stage, and its teacher's score on test; exits where its labels are not made."""
    loaded = catalog.load(target)
    steps = pipeline.steps(loaded, folder, beside=catalog.path_of(target))
    line = {step.name: step for step in steps}
    if not line["labels"].stage.path.is_dir():
        raise SystemExit(f"make the teacher's labels first: edgekd run {target} --store {folder} --to labels")
    return loaded, line, store.read_json(line["teacher"].stage.path / "scores.json")["test"]["score"]


def kept(score: float, teacher: float, say: bool = True) -> str:
    """The share of the teacher's score, as the end of a line."""
    return f", {score / teacher:.2%} kept" if say else ""


def scores(
    line: dict[str, Any],
    folder: Path,
    seed: int,
    threads: int,
    student: Student | None = None,
    quant: Quant | None = None,
    quantized: str = "quantize",
) -> dict[str, float]:
    """Scores on the test split of the students that ``seed`` makes, by kind.

    ``student`` and ``quant`` stand in for the target's; ``quantized`` names the folder of what is quantized so.
    """
    task, quant = line["quantize"].inputs["task"], quant or line["quantize"].inputs["quant"]
    stages = {
        "distill": Stage("distill", "", folder / "distill"),
        "quantize": Stage("quantize", "", folder / quantized),
    }
    changes: dict[str, dict[str, Any]] = {
        "distill": {"student": student or line["distill"].inputs["student"]},
        "quantize": {"distill": stages["distill"], "quant": quant},
    }
    for module, name in ((distill, "distill"), (quantize, "quantize")):
        out = stages[name].path
        if not (out / "scores.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            inputs = line[name].inputs | {"seed": seed} | changes[name]
            module.run(Context(out, "cpu", threads, Progress()), **inputs)
    data = read_data(task, line["assets"].stage)
    model, tokenizer = load_stage_model(stages["distill"], data.labels)
    test = tokenise_splits(tokenizer, data, task.max_length, ("test",))["test"]

    def score() -> float:
        return evaluate.compare(evaluate.logits(model, test), test.labels, None)["score"]

    result = {"fp32": score()}
    quantize.prepare(model, quant)
    for kind in KINDS[1:]:
        model.load_state_dict(load_file(stages["quantize"].path / f"{kind}.safetensors"))
        result[kind] = score()
    return result


if __name__ == "__main__":
    main()
