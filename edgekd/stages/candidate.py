"""One candidate of `edgekd tune`: the distilled student in another placement, calibrated and not trained further."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch

from edgekd import spec
from edgekd.onnxio import audit, files, passes, requantize, skip_layer_norm
from edgekd.onnxio import export as exporter
from edgekd.quant.calibrate import calibrate
from edgekd.stages.common import load_stage_model, read_data, tokenise_splits
from edgekd.stages.export import calibration_tokens, quantize_attention, write_inputs
from edgekd.stages.quantize import prepare
from edgekd.store import Context, Stage, write_json

REVISION = 1
MODEL = "model.onnx"
INPUTS = "inputs.npz"
Variant = Literal["", "outputs", "sequence", "skip_layer_norm"]


def run(
    ctx: Context,
    *,
    task: spec.Task,
    quant: spec.Quant,
    opset: int,
    variant: Variant,
    hidden: int | None,
    assets: Stage,
    distill: Stage,
    calibration_ids: tuple[str, ...],
) -> None:
    """Write ``model.onnx``, its ``audit.json``, and the validation split as ``inputs.npz``.

    ``variant`` is a graph that no target asks for: ``outputs`` of linear layers quantized too, tensors that keep the
    dimension of the ``sequence``, or the operator of ``onnxio.skip_layer_norm``. ``hidden`` is the width of a student
    with random weights in the place of the distilled one. Raises ``ExportError`` or ``TargetError`` where there is no
    such graph.
    """
    data = read_data(task, assets)
    model, tokenizer = load_stage_model(distill, data.labels, "eager")
    if hidden is not None:
        model = of_width(model, hidden)
    examples = calibration_tokens(tokenizer, data, task, calibration_ids)
    prepare(model, quant)
    calibrate(model, quant, examples, np.arange(len(examples)))
    flat = variant != "sequence"
    order = () if flat else tuple(name for name in passes.QUANTIZED_PASSES if name != "flatten")
    path, kept = ctx.out / MODEL, quant.floats
    exporter.export_quantized(model.eval(), path, opset=opset, keep_float=kept, graph_passes=order)
    quantize_attention(path, quant, examples)
    if variant == "outputs":
        graph = files.read(path)
        places = requantize.outputs(graph)
        files.write(requantize.apply(graph, places, examples, quant.method, quant.percentile), path)
    elif variant == "skip_layer_norm":
        files.write(skip_layer_norm.apply(files.read(path)), path)
    write_json(ctx.out / "audit.json", audit.audit(path, kept))
    validation = tokenise_splits(tokenizer, data, task.max_length, ("validation",))["validation"]
    write_inputs(ctx.out / INPUTS, validation)


def of_width(model: Any, hidden: int) -> Any:
    """A model of the same kind and shape, but for its hidden width, with random weights: good for timing alone."""
    config = copy.deepcopy(model.config)
    config.hidden_size = hidden
    torch.manual_seed(0)
    return type(model)(config).eval()
