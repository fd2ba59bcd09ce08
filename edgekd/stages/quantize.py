"""The int8 student: the best plain PTQ, which is the control; then calibrated and trained on under the same losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from edgekd import globs, spec
from edgekd.distill import loop
from edgekd.distill.checkpoint import save_tensors
from edgekd.models import exits
from edgekd.models.student import skeleton
from edgekd.quant.calibrate import Batch, batches, calibrate_on, calibration_rows, enable_activations, ranges
from edgekd.quant.fold import freeze_batch_norms
from edgekd.quant.replace import quantize, schemes
from edgekd.quant.search import search
from edgekd.stages.common import answering, load_stage_model, read_data, set_lesson, tokenise_splits
from edgekd.stages.distill import ROWS, TEACHER, load_learned, load_peers, load_whole
from edgekd.store import Context, Stage, read_json, write_json

REVISION = 12
UNTRAINED = {"epochs": 0, "steps": 0, "seconds": 0.0, "step_ms": None}
OBSERVATIONS = 4
"""How often the moving weights' ranges are observed anew, at even distances, before they are frozen."""


def run(
    ctx: Context,
    *,
    task: spec.Task,
    distill_spec: spec.Distill,
    quant: spec.Quant,
    score_kept: float | None,
    assets: Stage,
    teacher: Stage,
    labels: Stage | tuple[Stage, ...],
    distill: Stage,
    calibration_ids: tuple[str, ...],
    seed: int,
) -> None:
    """Write ``ptq.safetensors`` and ``qad.safetensors`` (weights and every scale), ``ptq.json`` (what PTQ tried),
    ``quant.json``, ``scores.json``.

    ``score_kept``: the share of the teacher's validation score that PTQ need only keep for nothing to be trained;
    None: training is asked for in any case. Without training, or where it came no closer to the teacher, ``qad`` is the
    PTQ model.
    """
    data = read_data(task, assets)
    model, tokenizer = load_stage_model(distill, data.labels)
    model.to(ctx.device)
    tokens = tokenise_splits(tokenizer, data, task.max_length, ("taught", "validation"))
    rows = calibration_rows(calibration_ids, data.train.ids, everything=task.limit is None)
    prepare(model, quant)
    whole = load_whole(distill, data.labels)
    if whole is not None:  # its deeper layers learn along in float
        exits.share(whole, model)
    asked = partial(answering, teacher, data, distill.path / TEACHER)
    peers = load_peers(distill, data.labels)
    chosen = np.load(distill.path / ROWS) if (distill.path / ROWS).exists() else None
    lesson, _ = set_lesson(ctx, "quantize", model, tokens, distill_spec, labels, asked, peers, seed, chosen, whole)

    examples = batches(tokens["taught"], rows)

    def observe() -> dict[str, tuple[float, float]]:
        return calibrate_on(model, quant, examples, ctx.progress)

    float_weights = copy.deepcopy(model.state_dict())
    tries = best_ptq(ctx, model, quant, examples, lesson.evaluate)
    ptq = next(found for found in tries if found["best"])
    scores = {"ptq": {name: ptq[name] for name in ("score", "agreement", "kl")}}
    observed = {"ptq": ranges(model)}
    enough = score_kept and score_kept * read_json(teacher.path / "scores.json")["validation"]["score"]
    if enough is not None and ptq["score"] >= enough:
        ctx.progress.log(
            f"quantize: not trained under quantization: PTQ was within the budget, {ptq['score']:.4f} on validation "
            f"where {enough:.4f} is asked"
        )
        training: dict[str, Any] = UNTRAINED | {"best": {"epoch": 0, "step": 0, "loss": None, **scores["ptq"]}}
    else:
        model.load_state_dict(float_weights)
        observe()
        load_learned(lesson.module, distill)
        training = train(ctx, lesson, quant, seed, observe)
        if lesson.rank(training["best"]) <= lesson.rank(scores["ptq"]):
            ctx.progress.log("quantize: no epoch came closer to the teacher than the best PTQ, which is kept")
            training["best"] = {"epoch": 0, "step": 0, "loss": None, **scores["ptq"]}
            model.load_state_dict(load_file(ctx.out / "ptq.safetensors"))
    scores["qad"], observed["qad"] = lesson.evaluate(), ranges(model)
    save_tensors(model.state_dict(), ctx.out / "qad.safetensors")
    fp32 = read_json(distill.path / "scores.json")
    rows_by_name = {"fp32": fp32["validation"], f"best PTQ ({ptq['name']})": scores["ptq"], "shipped": scores["qad"]}
    said = ", ".join(f"{name} {row['score']:.4f}" for name, row in rows_by_name.items())
    ctx.progress.log(f"quantize: validation {said}")
    found = {"scheme": quant.scheme, "ranges": observed, "ptq": ptq["name"], "trained": bool(training["steps"])}
    write_json(ctx.out / "quant.json", found | ({"calibration_examples": len(rows)} if quant.static else {}))
    ratio = training["step_ms"] and round(training["step_ms"] / fp32["training"]["step_ms"], 3)
    write_json(ctx.out / "scores.json", scores | {"training": training, "qat_step_time_ratio": ratio})
    loop.clean(ctx.out)


def best_ptq(
    ctx: Context, model: Any, quant: spec.Quant, examples: Sequence[Batch], judge: Callable[[], dict[str, float]]
) -> list[dict[str, Any]]:
    """Leave ``model`` as the best PTQ, written to ``ptq.safetensors``; what was tried goes to ``ptq.json``, too."""
    if (ctx.out / "ptq.json").exists():  # of a try that was killed later on
        model.load_state_dict(load_file(ctx.out / "ptq.safetensors"))
        return list(read_json(ctx.out / "ptq.json"))
    tries = search(model, quant, examples, example(model), judge, ctx.progress)
    save_tensors(model.state_dict(), ctx.out / "ptq.safetensors")
    write_json(ctx.out / "ptq.json", tries)
    return tries


def train(ctx: Context, lesson: loop.Task, quant: spec.Quant, seed: int, observe: Callable[[], Any]) -> dict[str, Any]:
    """Train the calibrated student under fake-quantization, ranges observed anew as the weights move.

    During the first ``quant.weights_first`` of the steps activations stay in float, but not where it is judged.
    """
    model = lesson.module

    def before(step: int, last: int) -> None:
        lesson.before_step(step, last)
        observations = observation_steps(quant, last)
        if step in observations:
            observe()
        if step >= max(observations, default=0):
            freeze_batch_norms(model)
        if quant.weights_first:
            enable_activations(model, step >= first_quantized(quant, last))

    def judge() -> dict[str, float]:
        enable_activations(model, True)
        return lesson.evaluate()

    return loop.fit(
        replace(lesson, before_step=before, evaluate=judge, continues=True),
        epochs=quant.epochs,
        options=quant.optimizer,
        seed=seed + 1,
        out=ctx.out,
        progress=ctx.progress,
    )


def check(student: spec.Student, quant: spec.Quant) -> None:
    """Raise ``TargetError`` where a student of its own configuration has a layer that cannot be quantized so.

    What surgery cuts consists of layers that can. Asked before anything is trained.
    """
    if student.config is not None:
        layers = schemes(skeleton(student.config), quant.scheme, quant.keep_float, quant.mixed)
        globs.check_attention(quant.keep_float, quant.scheme, layers)


def first_quantized(quant: spec.Quant, last: int) -> int:
    """The training step, of ``last``, from which activations are quantized."""
    return math.floor(quant.weights_first * last)


def observation_steps(quant: spec.Quant, last: int) -> tuple[int, ...]:
    """The training steps, of ``last``, before which ranges are observed anew.

    Learned ones but once, where activations begin to be quantized; the others from there on, the last time to freeze.
    """
    begin = first_quantized(quant, last)
    moving = max(0, math.floor((1 - quant.frozen_fraction) * last) - begin) if quant.scales == "statistics" else 0
    return tuple(sorted({begin + round(moving * i / OBSERVATIONS) for i in range(OBSERVATIONS + 1)} - {0, last}))


def prepare(model: Any, quant: spec.Quant) -> Any:
    """Replace the student's layers by fake-quantized ones, in place; the same structure for training and export."""
    departures = {
        "learned": quant.scales == "learned",
        "per_channel": quant.per_channel,
        "weight_bits": quant.weight_bits,
        "act_bits": quant.activation_bits,
    }
    return quantize(model, quant.scheme, quant.keep_float, example(model), quant.block, quant.mixed, **departures)


def example(model: Any) -> dict[str, torch.Tensor]:
    """A batch by which one sees which layers read what: eight different tokens, all attended to."""
    ids = torch.arange(8, device=next(model.parameters()).device).unsqueeze(0) % model.config.vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
