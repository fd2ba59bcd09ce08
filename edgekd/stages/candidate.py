"""One candidate of `edgekd tune`: the distilled student in another placement, calibrated and not trained further."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from edgekd import spec
from edgekd.onnxio import audit, rewrite
from edgekd.quant.calibrate import calibrate
from edgekd.stages.common import load_stage_model, read_data, tokenise_splits
from edgekd.stages.export import calibration_tokens, write_inputs
from edgekd.stages.quantize import prepare
from edgekd.store import Context, Stage, write_json

REVISION = 2
MODEL = "model.onnx"
INPUTS = "inputs.npz"


def run(
    ctx: Context,
    *,
    task: spec.Task,
    quant: spec.Quant,
    export: spec.Export,
    hidden: int | None,
    assets: Stage,
    distill: Stage,
    calibration_ids: tuple[str, ...],
) -> None:
    """Write ``model.onnx``, its ``audit.json``, and the validation split as ``inputs.npz``.

    ``hidden`` is the width of a student with random weights in the place of the distilled one. Raises ``ExportError``
    or ``TargetError`` where there is no such graph.
    """
    data = read_data(task, assets)
    model, tokenizer = load_stage_model(distill, data.labels, "eager")
    if hidden is not None:
        model = of_width(model, hidden)
    examples = calibration_tokens(tokenizer, data, task, calibration_ids)
    prepare(model, quant)
    calibrate(model, quant, examples, np.arange(len(examples)))
    path = ctx.out / MODEL
    rewrite.write(model.eval(), path, export, quant)
    for _ in rewrite.steps(path, export, quant, examples):
        pass
    write_json(ctx.out / "audit.json", audit.audit(path, quant.floats))
    validation = tokenise_splits(tokenizer, data, task.max_length, ("validation",))["validation"]
    write_inputs(ctx.out / INPUTS, validation)


def of_width(model: Any, hidden: int) -> Any:
    """A model of the same kind and shape, but for its hidden width, with random weights: good for timing alone."""
    config = copy.deepcopy(model.config)
    config.hidden_size = hidden
    torch.manual_seed(0)
    return type(model)(config).eval()
