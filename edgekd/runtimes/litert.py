"""LiteRT on the CPU (XNNPACK): a ``.tflite`` made of the shipped ``.onnx``.

Every length that is wanted is a signature of one file, over the same weights; an input is padded, and masked, to the
next one. Weights that the graph holds in int8 are the very same integers here, under the same scales. XNNPACK quantizes
what they are multiplied with by each row's own range, and is shown the ends of the graph's (``range_ends``): so a
student with fixed ranges computes with the integers that it was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # here: what importing costs is not the model's
from numpy.typing import NDArray

from edgekd.errors import BenchError

SIGNATURE = "tokens_{}"
ALGORITHM = "dequantized_weight_recovery"
"""The quantizer takes no names but its own; this is of weights that lie on a grid already, which it would guess."""


class LiteRtSession:
    """One interpreter with a signature for each length."""

    def __init__(self, interpreter: Any) -> None:
        names = interpreter.get_signature_list()
        lengths = sorted(int(name.rpartition("_")[2]) for name in names)
        self._runners = {n: interpreter.get_signature_runner(SIGNATURE.format(n)) for n in lengths}
        details = self._runners[lengths[0]].get_input_details()
        self.inputs = tuple(details)
        self._types = {name: found["dtype"] for name, found in details.items()}

    def run(self, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """The logits of one example, padded to the next length there is."""
        tokens = next(iter(feeds.values())).shape[1]
        length = next((n for n in self._runners if n >= tokens), None)
        if length is None:
            raise BenchError(f"{tokens} tokens, and the file goes up to {max(self._runners)}")
        padded = {}
        for name, given in feeds.items():
            padded[name] = np.zeros((len(given), length), self._types[name])
            padded[name][:, :tokens] = given
        logits: NDArray[Any] = next(iter(self._runners[length](**padded).values()))
        return logits


def load(path: Path, threads: int) -> LiteRtSession:
    """Open the model for ``threads`` threads, under the XNNPACK delegate, which is the default."""
    return LiteRtSession(Interpreter(model_path=str(path), num_threads=threads))


def version() -> str:
    """The version of the ai-edge-litert package."""
    from importlib import metadata

    return metadata.version("ai-edge-litert")


# --------------------------------------------------------------------------------------------------------- conversion


def convert(source: Path, out: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Write ``out`` from the ``.onnx`` at ``source``, with a signature for each of ``lengths``.

    Returns ``int8`` and ``float``, the names of the weights of each kind. Raises ``ExportError`` for a graph without a
    counterpart, and where a product that the graph has in int8 would be in float.
    """
    import litert_torch
    import torch

    from edgekd.onnxio import bridge, files, passes

    model = passes.apply(files.read(source), passes.WIDENED)
    folded = passes.apply(model, passes.FOLDED)
    graph = bridge.Graph(folded).eval()
    made: Any = litert_torch
    for length in lengths:
        given = {name: torch.ones(1, length, dtype=torch.int64) for name in graph.inputs}
        made = made.signature(SIGNATURE.format(length), graph, sample_kwargs=given)
    out.unlink(missing_ok=True)
    made.convert().export(str(out))
    known = bridge.stored(model)
    _quantize(out, known)
    names = {weight.integers.tobytes(): weight.name for weight in known.values()} | bridge.names(folded)
    found: dict[str, set[str]] = {"int8": set(), "float": set()}
    for _, _, weight in _layers(out):
        kind = "int8" if weight.dtype == np.int8 else "float"
        found[kind].add(names.get(weight.tobytes(), "a weight that the graph does not have"))
    bridge.check_int8(model, known, found["int8"], "LiteRT")
    found["float"] |= {weight.name for weight in known.values()} - found["int8"]  # tables whose rows became constants
    return {kind: sorted(names) for kind, names in found.items()}


def _quantize(path: Path, known: Mapping[bytes, Any]) -> None:
    """Give the layers of a float file whose weights are ``known`` (``bridge.Stored``) these very integers."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
    from ai_edge_quantizer.algorithms.uniform_quantize import naive_min_max_quantize

    def parameters(op: Any, config: Any, content: Any = None, seen: Any = None) -> Any:
        if content is None:
            return naive_min_max_quantize.get_tensor_quant_params(op, config, content, seen)
        weight = known[content.tobytes()]
        scale = np.broadcast_to(weight.scale.reshape(-1), len(content)).reshape(-1, *[1] * (content.ndim - 1))
        return qtyping.UniformQuantParams(
            num_bits=8,
            quantized_dimension=0,
            scale=scale.astype(np.float32),
            zero_point=np.zeros(scale.shape, np.int32),
            symmetric=True,
            quantized_data=weight.integers,
        )

    tool = quantizer.Quantizer(str(path))
    ours = [(kind, name) for kind, name, weight in _layers(path) if weight.tobytes() in known]
    for kind, materialize in _kinds().items():
        algorithm_manager.register_quantized_op(
            ALGORITHM,
            kind,
            naive_min_max_quantize.init_qsvs,
            calibration_func=naive_min_max_quantize.min_max_calibrate,
            materialize_func=partial(materialize, parameters),
        )
    for kind, name in ours:
        tool.add_dynamic_config(f"^{re.escape(name)}$", kind, 8, qtyping.QuantGranularity.CHANNELWISE, ALGORITHM)
    if ours:
        result = tool.quantize()
        path.unlink()
        result.export_model(str(path))


def _kinds() -> dict[Any, Any]:
    """The operators whose weights are quantized, and what of the quantizer does that."""
    from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize
    from ai_edge_quantizer.qtyping import TFLOperationName

    return {
        TFLOperationName.FULLY_CONNECTED: common_quantize.materialize_fc_conv,
        TFLOperationName.CONV_2D: common_quantize.materialize_fc_conv,
        TFLOperationName.EMBEDDING_LOOKUP: common_quantize.materialize_embedding_lookup,
    }


def _layers(path: Path) -> Iterator[tuple[Any, str, NDArray[Any]]]:
    """Each operator of these kinds in a ``.tflite``, the name of what it gives, and its constant weight."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as reading

    model, kinds = reading.read_model(str(path)), _kinds()
    for graph in model.subgraphs:
        for op in graph.operators:
            kind = reading.TFL_OP_CODE_TO_NAME.get(model.operatorCodes[op.opcodeIndex].builtinCode)
            weight = reading.get_tensor_data(graph.tensors[op.inputs[1]], model.buffers) if kind in kinds else None
            if weight is not None:
                yield kind, reading.get_op_scope(op, graph.tensors), weight
