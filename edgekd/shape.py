"""How many parameters a transformer classifier has, from its ``config.json`` alone: arithmetic, without torch.

``plan`` uses it before anything is downloaded or built. The families are those that surgery can cut, DistilBERT as a
fresh student, and the common decoders as teachers; for any other the answer is ``None``, never a guess.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd import spec

BERTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Tensor:
    """One parameter: ``rows`` x ``columns`` (1 column for vectors); ``kind`` is embedding, linear, bias or norm."""

    name: str
    kind: str
    rows: int
    columns: int = 1

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return self.rows * self.columns


def tensors(config: Mapping[str, Any], labels: int) -> list[Tensor] | None:
    """Every parameter of ``<family>ForSequenceClassification`` with this configuration; ``None`` if it is not known.

    ``None`` also where the configuration leaves to the library's defaults something that decides a size.
    """
    kind = config.get("model_type")
    try:
        if kind in BERTS:
            return list(_bert(config, labels))
        if kind == "distilbert":
            return list(_distilbert(config, labels))
        if kind in DECODERS:
            return list(_decoder(config, labels))
    except KeyError:
        pass
    return None


def student_config(student: spec.Student, teacher: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """The student's configuration: its own, or the teacher's with what surgery cuts."""
    positions = student.positions or max_length
    vocabulary = min(student.vocabulary or teacher["vocab_size"], teacher["vocab_size"])
    if student.config is not None:
        return {"max_position_embeddings": positions, **student.config, "vocab_size": vocabulary}
    offset = int(teacher.get("pad_token_id") or 0) + 1 if teacher["model_type"] in BERTS[1:4] else 0
    cut: dict[str, Any] = {**teacher, "vocab_size": vocabulary, "max_position_embeddings": positions + offset}
    if student.layers is not None:
        cut["num_hidden_layers"] = student.layers if isinstance(student.layers, int) else len(student.layers)
    for name, value in (("hidden_size", student.hidden), ("num_attention_heads", student.heads)):
        cut[name] = value or cut[name]
    cut["intermediate_size"] = student.ffn or cut["intermediate_size"]
    if "embedding_size" in cut:
        cut["embedding_size"] = cut["hidden_size"]
    return cut


def parameters(shape: Sequence[Tensor]) -> int:
    """How many numbers there are in all."""
    return sum(tensor.count for tensor in shape)


def int8_bytes(shape: Sequence[Tensor], keep_float: Sequence[str] = ()) -> tuple[int, int]:
    """(least, expected) bytes of the int8 ONNX file.

    The least is what the numbers take: one byte for a weight or an embedding, four for a bias, a norm or anything that
    ``keep_float`` names. Expected are also a float scale and a zero point for each output channel, and the graph.
    """
    least = scales = 0
    for tensor in shape:
        module = tensor.name.rpartition(".")[0]
        whole = tensor.kind in ("bias", "norm") or any(fnmatch.fnmatch(module, pattern) for pattern in keep_float)
        least += tensor.count * (4 if whole else 1)
        scales += 0 if whole else 5 * tensor.rows if tensor.kind == "linear" else 5
    graph = GRAPH_BYTES_PER_WEIGHT * sum(tensor.kind in ("linear", "embedding") for tensor in shape)
    return least, least + scales + graph


GRAPH_BYTES_PER_WEIGHT = 2_000
"""Roughly what the nodes around one weight take in an exported file: names, quantize and dequantize, shapes."""


def _linear(name: str, out: int, into: int, bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", "linear", out, into)
    if bias:
        yield Tensor(f"{name}.bias", "bias", out)


def _norm(name: str, width: int, bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", "norm", width)
    if bias:
        yield Tensor(f"{name}.bias", "norm", width)


def _bert(config: Mapping[str, Any], labels: int) -> Iterator[Tensor]:
    hidden, ffn, kind = int(config["hidden_size"]), int(config["intermediate_size"]), config["model_type"]
    width = int(config["embedding_size"]) if kind == "electra" else hidden
    base = "roberta" if kind in BERTS[1:4] else kind
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    for table, rows in tables.items():
        yield Tensor(f"{base}.embeddings.{table}_embeddings.weight", "embedding", int(config[rows]), width)
    yield from _norm(f"{base}.embeddings.LayerNorm", width)
    if width != hidden:
        yield from _linear(f"{base}.embeddings_project", hidden, width)
    for i in range(int(config["num_hidden_layers"])):
        layer = f"{base}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            yield from _linear(f"{layer}.attention.self.{part}", hidden, hidden)
        yield from _linear(f"{layer}.attention.output.dense", hidden, hidden)
        yield from _norm(f"{layer}.attention.output.LayerNorm", hidden)
        yield from _linear(f"{layer}.intermediate.dense", ffn, hidden)
        yield from _linear(f"{layer}.output.dense", hidden, ffn)
        yield from _norm(f"{layer}.output.LayerNorm", hidden)
    if kind == "bert":
        yield from _linear("bert.pooler.dense", hidden, hidden)
        yield from _linear("classifier", labels, hidden)
    else:
        yield from _linear("classifier.dense", hidden, hidden)
        yield from _linear("classifier.out_proj", labels, hidden)


def _distilbert(config: Mapping[str, Any], labels: int) -> Iterator[Tensor]:
    hidden, ffn = int(config["dim"]), int(config["hidden_dim"])
    for table, rows in (("word", "vocab_size"), ("position", "max_position_embeddings")):
        yield Tensor(f"distilbert.embeddings.{table}_embeddings.weight", "embedding", int(config[rows]), hidden)
    yield from _norm("distilbert.embeddings.LayerNorm", hidden)
    for i in range(int(config["n_layers"])):
        layer = f"distilbert.transformer.layer.{i}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            yield from _linear(f"{layer}.attention.{part}", hidden, hidden)
        yield from _norm(f"{layer}.sa_layer_norm", hidden)
        yield from _linear(f"{layer}.ffn.lin1", ffn, hidden)
        yield from _linear(f"{layer}.ffn.lin2", hidden, ffn)
        yield from _norm(f"{layer}.output_layer_norm", hidden)
    yield from _linear("pre_classifier", hidden, hidden)
    yield from _linear("classifier", labels, hidden)


def _decoder(config: Mapping[str, Any], labels: int) -> Iterator[Tensor]:
    hidden, ffn = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or hidden // heads)
    pairs = int(config.get("num_key_value_heads") or heads)
    bias = config["model_type"] == "qwen2" or bool(config.get("attention_bias"))
    yield Tensor("model.embed_tokens.weight", "embedding", int(config["vocab_size"]), hidden)
    for i in range(int(config["num_hidden_layers"])):
        layer = f"model.layers.{i}"
        for part, count in (("q", heads), ("k", pairs), ("v", pairs)):
            yield from _linear(f"{layer}.self_attn.{part}_proj", count * width, hidden, bias)
        yield from _linear(f"{layer}.self_attn.o_proj", hidden, heads * width, bool(config.get("attention_bias")))
        if config["model_type"] == "qwen3":
            yield from _norm(f"{layer}.self_attn.q_norm", width, bias=False)
            yield from _norm(f"{layer}.self_attn.k_norm", width, bias=False)
        for part in ("gate", "up"):
            yield from _linear(f"{layer}.mlp.{part}_proj", ffn, hidden, bool(config.get("mlp_bias")))
        yield from _linear(f"{layer}.mlp.down_proj", hidden, ffn, bool(config.get("mlp_bias")))
        yield from _norm(f"{layer}.input_layernorm", hidden, bias=False)
        yield from _norm(f"{layer}.post_attention_layernorm", hidden, bias=False)
    yield from _norm("model.norm", hidden, bias=False)
    yield from _linear("score", labels, hidden, bias=False)
