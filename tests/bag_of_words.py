"""An ONNX classifier small enough to read, made without torch, for the tests of runtimes and of the harness."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, CLASSES = 50, 8, 3


def bag_of_words(path: Path, *, sizes: tuple[int, ...] = (WIDTH,), seed: int = 0) -> onnx.ModelProto:
    """Embeddings, linear layers of ``sizes``, their masked sum, ``logits``; before those, an output nobody wants."""
    rng = np.random.default_rng(seed)
    weights = {
        "table": rng.normal(size=(VOCABULARY, sizes[0])),
        "head": rng.normal(size=(sizes[-1], CLASSES)),
        **{f"w{i}": rng.normal(size=pair) / pair[0] ** 0.5 for i, pair in enumerate(pairwise(sizes))},
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["h0"]),
        *(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(len(sizes) - 1)),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", [f"h{len(sizes) - 1}", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers += [numpy_helper.from_array(np.array([axis]), name) for name, axis in (("last", -1), ("one", 1))]
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    )
    outputs = [
        helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", sizes[-1]]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES]),
    ]
    graph = helper.make_graph(nodes, "bag_of_words", [ids, mask], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return model
