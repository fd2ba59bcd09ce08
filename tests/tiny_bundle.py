"""A bundle small enough to check by hand: words become vectors, their mean becomes logits. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import report_fixture as made
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekd import machine, ship
from edgekd.onnxio.signature import signature
from edgekd.store import write_json

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "oil", "prices", "rose", "wheat", "profit", "bank"]
MAX_LENGTH = 8
LABELS = made.LABELS


def weights() -> tuple[np.ndarray, np.ndarray]:
    """(vectors of the words, head), float32."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(WORDS), 6)).astype(np.float32)
    return vectors, rng.normal(size=(6, len(LABELS))).astype(np.float32)


def expected(text: str) -> np.ndarray:
    """The logits of a text, in float64, by the definition."""
    vectors, head = (w.astype(np.float64) for w in weights())
    words = [WORDS.index(w) if w in WORDS else 1 for w in text.lower().split()]
    ids = [2, *words[: MAX_LENGTH - 2], 3]
    return vectors[ids].mean(axis=0) @ head


def tokenizer(special: bool = True) -> Tokenizer:
    """Whole words, in lower case, with [CLS] and [SEP] around them if ``special``."""
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        found.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return found


def model(
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"), integer: int = TensorProto.INT64
) -> onnx.ModelProto:
    """logits = (mean of the words' vectors, masked) @ head."""
    vectors, head = weights()
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["words", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    constants = {"vectors": vectors, "head": head, "last": np.array([2]), "one": np.array([1])}
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, integer, shape) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def export_stage(root: Path, **graph: Any) -> Path:
    """An export stage's folder with a ``student_qad`` in it."""
    folder = root / "student_qad"
    folder.mkdir(parents=True)
    onnx.save(model(**graph), folder / "model.onnx")
    write_json(root / "signature.json", signature(folder / "model.onnx"))
    tokenizer().save(str(folder / "tokenizer.json"))
    config = {"model_type": "bert", "id2label": {str(i): label for i, label in enumerate(LABELS)}, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "model_max_length": MAX_LENGTH}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return root


def report(**changes: Any) -> dict[str, Any]:
    """The fixture's report, for texts of at most ``MAX_LENGTH`` tokens and a CPU that asks for nothing."""
    found = made.report(**changes)
    found["task"]["max_length"] = MAX_LENGTH
    found["device"] |= {"features": [], "isa": machine.isa()}
    return found


def bundle(root: Path, **graph: Any) -> Path:
    """A shipped bundle under ``root``."""
    return ship.pack(report(), export_stage(root / "export", **graph), root / "dist" / "tiny")
