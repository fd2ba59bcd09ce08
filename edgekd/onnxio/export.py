"""From a torch module to a lean ONNX file: the TorchScript exporter, then graph passes, then the checks.

The TorchScript exporter is chosen explicitly. The newer one cannot write Brevitas' int8 weights (it needs fp32
weights with a Q node, four times the size) nor int32 biases.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import torch
from brevitas.export import export_onnx_qcdq
from torch import Tensor, nn

from edgekd.errors import ExportError
from edgekd.globs import named_in
from edgekd.models import masks
from edgekd.onnxio import branches, files, passes
from edgekd.onnxio.names import marked, module_path, said_once
from edgekd.onnxio.passes import block_weights
from edgekd.onnxio.passes.names import WRAPPER
from edgekd.onnxio.sizes import dtype, size
from edgekd.quant import blocks

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PIXELS = "pixel_values"
Image = tuple[int, int, int]
"""Channels, height, width."""
OUTPUT = "logits"
OPSETS = range(17, 21)
"""17 brought LayerNormalization; 20 is the last that the TorchScript exporter writes."""

LARGEST_FLOAT = 64 * 1024
"""Bytes; a larger tensor of floats in a quantized model must be named in ``keep_float``."""

FLOATS = ("float", "float16", "bfloat16", "double")


class _Positional(nn.Module):
    """The exporter passes tensors in order and wants a tensor back; our models take keywords and return an object."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        setattr(self, WRAPPER, model)
        self.names = names

    def forward(self, *tensors: Tensor) -> Any:
        return getattr(self, WRAPPER)(**dict(zip(self.names, tensors, strict=True))).logits


def export_float(model: nn.Module, path: Path, *, opset: int, image: Image | None = None) -> onnx.ModelProto:
    """Write ``model`` in float32 with dynamic batch and sequence; inputs int64 (batch, sequence), output ``logits``.

    The inputs are those of input_ids, attention_mask and token_type_ids that its forward accepts. A model of images has
    one, pixel_values, float32 (batch, channels, height, width), whose last three sizes are those of ``image``. The
    graph gets every pass that a float graph can gain from, since int8 graphs are compared with it; one that branches on
    data (``branches.left`` names the node) is written as it was traced. Raises ``ExportError``.
    """
    return _export(model, path, opset, passes.FLOAT_PASSES, image, quantized=False)


def export_quantized(
    model: nn.Module,
    path: Path,
    *,
    opset: int,
    keep_float: tuple[str, ...] = (),
    graph_passes: tuple[str, ...] = (),
    image: Image | None = None,
) -> onnx.ModelProto:
    """Write a Brevitas fake-quantized ``model`` with int8 weights (quantize, clip, dequantize nodes turned lean).

    Brevitas' exporter knows no blocks: modules with weights in blocks are exported in float, and get them by a pass.
    ``keep_float`` names, by globs over module paths, what may hold fp32 tensors above 64 KiB. ``graph_passes`` replaces
    ``passes.QUANTIZED_PASSES``. Inputs, ``image`` and output are those of ``export_float``. Raises ``ExportError``,
    naming the tensor or node, where the file is not as promised.
    """
    weights = blocks.block_weights(model)
    with blocks.plain(model):
        names = graph_passes or (passes.QUANTIZED_PASSES if blocks.quantized(model) else passes.FLOAT_PASSES)
        return _export(model, path, opset, names, image, quantized=True, keep_float=keep_float, weights=weights)


def accepted_inputs(model: nn.Module) -> tuple[str, ...]:
    """Which of the text inputs the model reads; pixel_values where it reads none of them.

    Token types only where it has a table for them: some decoders look them up among the words, and without any (as in
    training) compute something else than with zeros.
    """
    accepted = set(inspect.signature(model.forward).parameters)
    if not getattr(getattr(model, "config", None), "type_vocab_size", 0):
        accepted.discard("token_type_ids")
    return tuple(name for name in INPUTS if name in accepted) or tuple({PIXELS} & accepted)


def _export(
    model: nn.Module,
    path: Path,
    opset: int,
    names: tuple[str, ...],
    image: Image | None,
    quantized: bool,
    keep_float: tuple[str, ...] = (),
    weights: Mapping[str, blocks.Blocks] = MappingProxyType({}),
) -> onnx.ModelProto:
    inputs = accepted_inputs(model)
    _check_request(model, opset, inputs, image)
    raw = branches.inline(_trace(model, inputs, image, opset, quantized and blocks.quantized(model)))
    straight = quantized or branches.left(raw) is None
    result = passes.apply(raw, names) if straight else raw  # a baseline may be clumsy, but not missing
    if weights:
        result = passes.apply(block_weights.apply(result, weights), passes.FINISH)
    _stamp(result, opset)
    _check(result, inputs, {"": opset} | ({block_weights.DOMAIN: 1} if weights else {}))
    if quantized:
        _check_floats(result, keep_float)
    files.write(result, path)
    return result


def _check_request(model: nn.Module, opset: int, inputs: tuple[str, ...], image: Image | None) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} cannot be exported; choose one of {OPSETS.start} to {OPSETS.stop - 1}")
    if "input_ids" not in inputs and PIXELS not in inputs:
        raise ExportError(
            f"{type(model).__name__}.forward takes neither input_ids nor {PIXELS}; only models of texts and of images "
            "are exported here"
        )
    if PIXELS in inputs and image is None:
        raise ExportError(f"{type(model).__name__} reads images; say which size: image=(channels, height, width)")
    for name, tensor in model.named_parameters():
        if tensor.dtype != torch.float32:
            raise ExportError(f"{name} is {tensor.dtype}; export a float32 copy of the model (model.float())")


def _trace(
    model: nn.Module, inputs: tuple[str, ...], image: Image | None, opset: int, quantized: bool
) -> onnx.ModelProto:
    device = next(model.parameters()).device
    example = tuple(torch.ones(2, 8, dtype=torch.long, device=device) for _ in inputs)
    if "token_type_ids" in inputs:
        example = (*example[:-1], torch.zeros_like(example[-1]))
    dynamic = {0: "batch", 1: "sequence"}
    if image is not None and PIXELS in inputs:
        example, dynamic = (torch.zeros(2, *image, device=device),), {0: "batch"}
    options: dict[str, Any] = dict(
        input_names=list(inputs),
        output_names=[OUTPUT],
        dynamic_axes={**dict.fromkeys(inputs, dynamic), OUTPUT: {0: "batch"}},
        opset_version=opset,
        dynamo=False,
        do_constant_folding=True,
        keep_initializers_as_inputs=False,
    )
    training = model.training
    wrapped = _Positional(model, inputs).eval()
    modules = {name for name, _ in wrapped.named_modules()}
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        torch.no_grad(),
        masks.traceable(),
        _scales_attached(model),
    ):
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        try:
            if quantized:
                export_onnx_qcdq(wrapped, args=example, export_path=str(file), **options)
            else:
                torch.onnx.export(wrapped, example, str(file), **options)
        except Exception as error:  # whatever the exporter meets in a model, the user must learn which model
            raise ExportError(f"{type(model).__name__} cannot be exported to ONNX: {error}") from error
        finally:
            model.train(training)
        raw = files.read(file)
    for node in raw.graph.node:
        node.name = said_once(marked(node.name, modules), modules)
    return raw


@contextmanager
def _scales_attached(model: nn.Module) -> Iterator[None]:
    """The exporter reads scales off what Brevitas' quantizers return; in training they may return bare tensors."""
    bare = [module for module in model.modules() if getattr(module, "skip_create_quant_tensor", False) is True]
    for module in bare:
        module.skip_create_quant_tensor = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in bare:
            module.skip_create_quant_tensor = True  # type: ignore[assignment]


def _stamp(model: onnx.ModelProto, opset: int) -> None:
    """Only what a runtime needs, and nothing that differs between two exports of one model."""
    imports = [onnx.helper.make_opsetid("", opset)]
    model.ir_version = onnx.helper.find_min_ir_version_for(imports)  # old runtimes load the oldest that holds the opset
    model.producer_name, model.producer_version, model.doc_string, model.domain = "edgekd", "", "", ""
    model.graph.name, model.graph.doc_string = "model", ""
    del model.graph.value_info[:]  # of a graph as traced: they mislead whoever rewrites it
    del model.metadata_props[:]


def _check(model: onnx.ModelProto, inputs: tuple[str, ...], opsets: Mapping[str, int]) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid: {error}") from error
    names = tuple(value.name for value in model.graph.input)
    if names != inputs:
        raise ExportError(f"the exported graph has the inputs {', '.join(names)} instead of {', '.join(inputs)}")
    stamped = {entry.domain: entry.version for entry in model.opset_import}
    if stamped != opsets:
        raise ExportError(f"the exported graph uses the operator sets {stamped} instead of {opsets}")
    for tensor in model.graph.initializer:
        if tensor.external_data:
            raise ExportError(f"{tensor.name} is not stored in the file itself")


def _check_floats(model: onnx.ModelProto, keep_float: tuple[str, ...]) -> None:
    """Refuse a large tensor of floats that nobody asked for, as the audit refuses a multiplication in float.

    An error and no warning: a weight that stays in float by mistake is most of the file, and whoever wants it there can
    say so. The scales of four-bit blocks are the price of the scheme and pass.
    """
    large = {t.name: kind for t in model.graph.initializer if (kind := dtype(t)) in FLOATS and size(t) > LARGEST_FLOAT}
    for node in model.graph.node:
        scales = node.op_type == "Cast" and "/weight_quant/" in node.name
        for name in node.input:
            if name in large and not scales and not named_in(module_path(node.name), keep_float):
                raise ExportError(
                    f"{name}, used by {node.name}, is a {large[name]} tensor above {LARGEST_FLOAT // 1024} KiB in a "
                    f"quantized model; quantize its module, or add {module_path(node.name)!r} to keep_float"
                )
