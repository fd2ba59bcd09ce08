"""How to train under quantization: recipes that differ from a target's in one thing, judged on validation.

    python benchmarks/schedule.py TARGET [--store runs] [--bits 8/8 4/4] [--seeds 1 2 3] [--student FOLDER]

The target's student must be finished in the store (edgekd run TARGET --to distill); ``--student`` is the folder of
another one's distill stage, e.g. of a small one that qad_map.py made. From it each recipe trains as many steps. One
line each: the KL to the teacher on validation (in thousandths of a nat), of the calibrated student and of the trained
one, mean over the seeds and its standard error; score; milliseconds a step over the fp32 student's. The test split is
not touched. What is done is kept in STORE/TARGET/schedule, so that a killed benchmark goes on.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seeds import finished

from edgekd import machine, spec, store
from edgekd.progress import Progress
from edgekd.stages import quantize
from edgekd.store import Context, canonical, read_json, write_json

RECIPES: dict[str, dict[str, Any]] = {
    "as it is by default": {},
    "ranges never observed anew": {"frozen_fraction": 1.0},
    "ranges observed to the end": {"frozen_fraction": 0.0},
    "weights alone for the first third": {"weights_first": 0.33},
    "learned scales": {"scales": "learned"},
    "learned scales, weights first": {"scales": "learned", "weights_first": 0.33},
    "one scale a weight": {"per_channel": False},
    "three times the learning rate": {"rate": 3.0},
    "ten times the learning rate": {"rate": 10.0},
    "learned scales, three times the rate": {"scales": "learned", "rate": 3.0},
    "learned scales, ten times the rate": {"scales": "learned", "rate": 10.0},
}


def main() -> None:
    """Train by each recipe and print how it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--student", type=Path, help="folder of a distill stage in the place of the target's")
    parser.add_argument("--bits", nargs="+", default=["8/8", "4/4"], help="of weights / of activations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--threads", type=int, default=machine.usable_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    target, line, _ = finished(given.target, given.store)
    student = store.Stage("distill", str(given.student), given.student) if given.student else line["distill"].stage
    if not student.path.is_dir():
        raise SystemExit(f"make the student first: edgekd run {given.target} --store {given.store} --to distill")
    inputs: dict[str, Any] = line["quantize"].inputs | {"distill": student}
    kept = given.store / target.name / "schedule" / student.key.replace("/", "_")
    plain = spec.Quant(**{n: getattr(inputs["quant"], n) for n in ("scheme", "calibration", "epochs", "keep_float")})
    for bits in given.bits:
        weight, activation = map(int, bits.split("/"))
        for name in given.recipes:
            change = RECIPES[name]
            rate = 1e-4 * change.get("rate", 1.0)
            quant = replace(
                plain,
                optimizer=spec.Optimizer(learning_rate=rate),
                weight_bits=weight if weight < 8 else None,
                activation_bits=activation if activation < 8 else None,
                **{field: value for field, value in change.items() if field != "rate"},
            )
            rows = []
            for seed in given.seeds:
                out = (
                    given.store
                    / target.name
                    / "schedule"
                    / student.key.replace("/", "_")
                    / f"{bits.replace('/', '-')} {name} {seed}"
                )
                asked = canonical({"distill": student, "quant": quant})
                if not (out / "asked.json").exists() or read_json(out / "asked.json") != asked:
                    out.mkdir(parents=True, exist_ok=True)
                    same_ptq = out.parent / f"ptq {bits.replace('/', '-')} {quant.scales} {quant.per_channel}"
                    if same_ptq.is_dir():  # as a killed run would have left it: searched once for all
                        shutil.copytree(same_ptq, out, dirs_exist_ok=True)
                    quantize.run(
                        Context(out, "cpu", given.threads, Progress()), **inputs | {"quant": quant, "seed": seed}
                    )
                    write_json(out / "asked.json", asked)
                    same_ptq.mkdir(exist_ok=True)
                    for file in out.glob("ptq.*"):
                        shutil.copy(file, same_ptq)
                rows.append(read_json(out / "scores.json"))
            print(f"{bits} {name}: {told(rows)}", flush=True)


def told(rows: list[dict[str, Any]]) -> str:
    """What the seeds have in common."""
    kl = 1e3 * np.array([row["qad"]["kl"] for row in rows])
    error = kl.std(ddof=1) / len(kl) ** 0.5 if len(kl) > 1 else float("nan")
    score = np.mean([row["qad"]["score"] for row in rows])
    ratio = np.mean([row["qat_step_time_ratio"] for row in rows])
    return f"KL {1e3 * rows[0]['ptq']['kl']:.2f} -> {kl.mean():.2f} +- {error:.2f}, score {score:.4f}, step {ratio:.2f}"


if __name__ == "__main__":
    main()
