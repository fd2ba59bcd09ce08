"""The int8 student: fake-quantized, calibrated (that is the PTQ control), then trained on under the same losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from edgekd import spec
from edgekd.distill import loop
from edgekd.distill.checkpoint import save_tensors
from edgekd.models.student import skeleton
from edgekd.quant.calibrate import calibrate, calibration_rows, ranges
from edgekd.quant.replace import quantize, schemes
from edgekd.stages.common import load_stage_model, read_data, set_lesson, tokenise_splits
from edgekd.stages.distill import load_projections
from edgekd.store import Context, Stage, read_json, write_json

REVISION = 5
OBSERVATIONS = 4
"""How often the moving weights' ranges are observed anew, at even distances, before they are frozen."""


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
    tokens = tokenise_splits(tokenizer, data, task.max_length, ("taught", "validation"))
    rows = calibration_rows(calibration_ids, data.train.ids, everything=task.limit is None)
    prepare(model, quant)
    lesson, learner = set_lesson(ctx, "quantize", model, tokens, distill_spec.losses, labels)
    observed = {"ptq": calibrate(model, quant, tokens["taught"], rows, ctx.progress)}
    scores = {"ptq": lesson.evaluate()}
    save_tensors(model.state_dict(), ctx.out / "ptq.safetensors")
    load_projections(learner, distill)

    def observe(step: int, last: int) -> None:
        if step in observation_steps(quant, last):
            calibrate(model, quant, tokens["taught"], rows, ctx.progress)

    training = loop.fit(
        replace(lesson, start=scores["ptq"], before_step=observe),
        epochs=quant.epochs,
        options=quant.optimizer,
        seed=seed + 1,
        out=ctx.out,
        progress=ctx.progress,
    )
    scores["qad"], observed["qad"] = lesson.evaluate(), ranges(model)
    save_tensors(model.state_dict(), ctx.out / "qad.safetensors")
    if not training["best"]["step"]:
        ctx.progress.log("quantize: no epoch came closer to the teacher than the calibrated student, which is kept")
    fp32 = read_json(distill.path / "scores.json")
    rows_by_name = {"fp32": fp32["validation"], "PTQ": scores["ptq"], "QAD": scores["qad"]}
    said = ", ".join(f"{name} {row['score']:.4f}" for name, row in rows_by_name.items())
    ctx.progress.log(f"quantize: validation {said}")
    found = {"scheme": quant.scheme, "ranges": observed} | ({"calibration_examples": len(rows)} if quant.static else {})
    write_json(ctx.out / "quant.json", found)
    ratio = training["step_ms"] / fp32["training"]["step_ms"]
    write_json(ctx.out / "scores.json", scores | {"training": training, "qat_step_time_ratio": round(ratio, 3)})
    loop.clean(ctx.out)


def check(student: spec.Student, quant: spec.Quant) -> None:
    """Raise ``TargetError`` where a student of its own configuration has a layer that cannot be quantized so.

    What surgery cuts consists of layers that can. Asked before anything is trained.
    """
    if student.config is not None:
        schemes(skeleton(student.config), quant.scheme, quant.keep_float, quant.mixed)


def observation_steps(quant: spec.Quant, last: int) -> tuple[int, ...]:
    """The training steps, of ``last``, before which ranges are observed anew; the last of them freezes them."""
    moving = math.floor((1 - quant.frozen_fraction) * last)
    return tuple(sorted({round(moving * i / OBSERVATIONS) for i in range(1, OBSERVATIONS + 1)} - {0, last}))


def prepare(model: Any, quant: spec.Quant) -> Any:
    """Replace the student's layers by fake-quantized ones, in place; the same structure for training and export."""
    device = next(model.parameters()).device
    example = torch.full((1, 8), int(model.config.pad_token_id or 0), device=device)
    inputs = {"input_ids": example, "attention_mask": torch.ones_like(example)}
    departures = {
        "learned": quant.scales == "learned",
        "per_channel": quant.per_channel,
        "weight_bits": quant.weight_bits,
        "act_bits": quant.activation_bits,
    }
    return quantize(model, quant.scheme, quant.keep_float, inputs, quant.block, quant.mixed, **departures)
