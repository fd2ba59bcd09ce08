"""The int8 student: fake-quantized, calibrated (that is the PTQ control), then trained on under the same losses."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgekd import spec
from edgekd.distill import evaluate, loop
from edgekd.distill.checkpoint import save_tensors
from edgekd.distill.labels import LabelStore
from edgekd.distill.losses import Learner
from edgekd.quant.calibrate import calibrate, calibration_rows, ranges
from edgekd.quant.replace import quantize
from edgekd.stages.common import load_stage_model, read_data, teacher_shape, tokenise_splits
from edgekd.stages.distill import load_projections, word_dropout
from edgekd.store import Context, Stage, read_json, write_json

REVISION = 2


def run(
    ctx: Context,
    *,
    task: spec.Task,
    distill_spec: spec.Distill,
    quant: spec.Quant,
    assets: Stage,
    teacher: Stage,
    labels: Stage,
    distill: Stage,
    calibration_ids: tuple[str, ...],
    seed: int,
) -> None:
    """Write ``ptq.safetensors`` and ``qad.safetensors`` (weights and every scale), ``quant.json``, ``scores.json``."""
    data = read_data(task, assets)
    model, tokenizer = load_stage_model(distill, data.labels)
    model.to(ctx.device)
    tokens = tokenise_splits(
        tokenizer.backend_tokenizer, tokenizer.pad_token_id, data, task.max_length, ("train", "validation")
    )
    rows = calibration_rows(calibration_ids, data.train.ids, everything=task.limit is None)
    truth = LabelStore(labels.path, "validation").logits
    prepare(model, quant)

    def judge() -> dict[str, float]:
        result = evaluate.logits(model, tokens["validation"])
        return evaluate.compare(result, tokens["validation"].labels, truth)

    observed = {"ptq": calibrate(model, quant, tokens["train"], rows)}
    scores = {"ptq": judge()}
    save_tensors(model.state_dict(), ctx.out / "ptq.safetensors")
    learner = Learner(model, distill_spec.losses, teacher_shape(labels)).to(torch.device(ctx.device))
    load_projections(learner, distill)
    moving = math.ceil((1 - quant.frozen_fraction) * quant.epochs)

    def observe(epoch: int) -> None:
        if 0 < epoch < moving:
            calibrate(model, quant, tokens["train"], rows)

    layers = read_json(labels.path / "index.json")["layers"]
    training = loop.fit(
        loop.Task(
            "quantize",
            learner,
            tokens["train"],
            LabelStore(labels.path, "train", layers),
            judge,
            observe,
            mask=word_dropout(distill_spec, tokenizer),
        ),
        epochs=quant.epochs,
        options=quant.optimizer,
        seed=seed + 1,
        out=ctx.out,
        progress=ctx.progress,
    )
    scores["qad"], observed["qad"] = judge(), ranges(model)
    save_tensors(model.state_dict(), ctx.out / "qad.safetensors")
    fp32 = read_json(distill.path / "scores.json")
    found = {"fp32": fp32["validation"], "PTQ": scores["ptq"], "QAD": scores["qad"]}
    ctx.progress.log("quantize: validation " + ", ".join(f"{name} {row['score']:.4f}" for name, row in found.items()))
    write_json(ctx.out / "quant.json", {"scheme": quant.scheme, "calibration_examples": len(rows), "ranges": observed})
    ratio = training["step_ms"] / fp32["training"]["step_ms"]
    write_json(ctx.out / "scores.json", scores | {"training": training, "qat_step_time_ratio": round(ratio, 3)})
    loop.clean(ctx.out)


def prepare(model: Any, quant: spec.Quant) -> Any:
    """Replace the student's layers by fake-quantized ones, in place; the same structure for training and export."""
    device = next(model.parameters()).device
    example = torch.full((1, 8), int(model.config.pad_token_id or 0), device=device)
    return quantize(
        model, quant.scheme, quant.keep_float, {"input_ids": example, "attention_mask": torch.ones_like(example)}
    )
