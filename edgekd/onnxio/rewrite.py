"""The quantized graph as training knows it, and what a target makes of it afterwards, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from edgekd import spec
from edgekd.distill.data import Tokens
from edgekd.onnxio import files, passes, requantize, skip_layer_norm
from edgekd.onnxio.export import export_quantized
from edgekd.quant.grids import Grid


def write(model: Any, path: Path, export: spec.Export, quant: spec.Quant) -> None:
    """The file as training knows it."""
    order = tuple(name for name in passes.QUANTIZED_PASSES if name != "flatten") if export.graph == "sequence" else ()
    export_quantized(model, path, opset=export.opset, keep_float=quant.floats, graph_passes=order)


def steps(
    path: Path, export: spec.Export, quant: spec.Quant, calibration: Tokens
) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Grid]]]:
    """Change an exported file into what training does not know, step by step: (step, the graph before, grids added).

    ``attention``: its own products are quantized, but for those that ``keep_float`` names, by ranges observed in the
    graph itself; a scheme without fixed ranges leaves them in float, and to the audit. Then what ``Export.graph`` asks
    for: ``outputs`` of linear layers by ranges so observed, or ``SkipLayerNormalization``.
    """
    places: dict[str, Callable[[onnx.ModelProto], list[requantize.Place]]] = {}
    if quant.static:
        places["attention"] = partial(requantize.attention, keep_float=quant.keep_float)
    if export.graph == "requantized":
        places["outputs"] = requantize.outputs
    for step, find in places.items():
        model = files.read(path)
        if found := find(model):
            chosen = requantize.grids(model, found, calibration, quant.method, quant.percentile)
            files.write(requantize.put(model, found, chosen), path)
            yield step, model, chosen
    if export.graph == "skip_layer_norm":
        model = files.read(path)
        files.write(skip_layer_norm.apply(model), path)
        yield "SkipLayerNormalization", model, {}
