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
    target = catalog.load(given.target)
    line = {step.stage.name: step for step in pipeline.steps(target, given.store, beside=catalog.path_of(given.target))}
    if not line["labels"].stage.path.is_dir():
        raise SystemExit(
            f"make the teacher's labels first: edgekd run {given.target} --store {given.store} --to labels"
        )
    teacher = store.read_json(line["teacher"].stage.path / "scores.json")["test"]["score"]
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
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        print(f"{name}: {100 * values.mean():.2f} +- {100 * half:.2f}" + kept(values.mean(), teacher, name in KINDS))


def kept(score: float, teacher: float, say: bool = True) -> str:
    """The share of the teacher's score, as the end of a line."""
    return f", {score / teacher:.2%} kept" if say else ""


def scores(line: dict[str, Any], folder: Path, seed: int, threads: int) -> dict[str, float]:
    """Scores on the test split of the students that ``seed`` makes, by kind."""
    stages = {name: Stage(name, "", folder / name) for name in ("distill", "quantize")}
    for module, name in ((distill, "distill"), (quantize, "quantize")):
        out = stages[name].path
        if not (out / "scores.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            inputs = line[name].inputs | {"seed": seed} | ({"distill": stages["distill"]} if name == "quantize" else {})
            module.run(Context(out, "cpu", threads, Progress()), **inputs)
    task, quant = line["quantize"].inputs["task"], line["quantize"].inputs["quant"]
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
