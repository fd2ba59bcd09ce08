"""How many parameters a classifier has, from its ``config.json`` alone: arithmetic, without torch.

``plan`` uses it before anything is downloaded or built. The families are those that surgery can cut, DistilBERT and
edgekd's own as fresh students, and the common decoders as teachers; for any other the answer is ``None``, never a
guess. What surgery can cut out of a teacher is decided here too: that needs no more than the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from edgekd import spec
from edgekd.errors import TargetError

ROBERTAS = ("roberta", "xlm-roberta", "camembert")
BERTS = ("bert", *ROBERTAS, "electra")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
SHALLOW = ("edgekd_text_cnn", "edgekd_text_lstm")  # students without attention
WIDTHS = {"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"}
"""The name of a width in a configuration, and that of the student's field."""
VOCABULARY = 8192
"""How many tokens a student's own tokenizer has, if the target does not say."""


@dataclass(frozen=True)
class Tensor:
    """One parameter: ``rows`` x ``columns`` (1 for vectors); what ``kind`` of layer it is of, or bias or norm."""

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
    if config.get("position_embedding_type") not in (None, "absolute"):
        return None  # relative positions have tables of their own
    try:
        if kind in BERTS:
            return list(_bert(config, labels))
        if kind == "distilbert":
            return list(_distilbert(config, labels))
        if kind in DECODERS:
            return list(_decoder(config, labels))
        if kind in SHALLOW:
            return list(_shallow(config, labels))
    except (KeyError, TypeError, ValueError):  # it is not given, or no number
        pass
    return None


def student_config(student: spec.Student, teacher: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """The student's configuration: its own, or the teacher's with what surgery cuts.

    Raises ``TargetError`` as ``check_cut`` does. What neither target nor teacher says is left out.
    """
    positions, pad_id = student.positions or max_length, _number(teacher, "pad_token_id")
    sizes = [size for size in (student.vocabulary, _number(teacher, "vocab_size")) if size]
    vocabulary = {"vocab_size": min(sizes)} if sizes else {}
    if student.config is not None:
        offset = position_offset(student.config.get("model_type"), pad_id)
        return {"max_position_embeddings": positions + offset, **student.config, **vocabulary}
    check_cut(student, teacher, positions)
    cut = {
        **teacher,
        **vocabulary,
        **({"type_vocab_size": 1} if teacher.get("type_vocab_size") else {}),
        "max_position_embeddings": positions + position_offset(teacher["model_type"], pad_id),
    }
    if student.layers is not None:
        cut["num_hidden_layers"] = student.layers if isinstance(student.layers, int) else len(student.layers)
    cut |= {name: value for name, value in _widths(student).items() if value is not None}
    if "embedding_size" in cut and "hidden_size" in cut:
        cut["embedding_size"] = cut["hidden_size"]
    return cut


def smallest_teacher(student: spec.Student, max_length: int) -> dict[str, Any]:
    """The configuration of the smallest teacher that the student could be cut out of, while the real one is not known.

    The student cut out of this one is the least that the target can mean, if the corpus fills its vocabulary.
    """
    heads = student.heads or 1
    layers = student.layers if isinstance(student.layers, int) else max(student.layers or (0,)) + 1
    widths = {"hidden_size": student.hidden or heads, "num_attention_heads": heads}
    tables = {"vocab_size": student.vocabulary or 1, "type_vocab_size": 1}
    tables["max_position_embeddings"] = student.positions or max_length
    widths["intermediate_size"] = student.ffn or 1
    return {"model_type": "bert", "num_hidden_layers": layers, **widths, **tables}


def check_cut(student: spec.Student, teacher: Mapping[str, Any], positions: int) -> None:
    """Raise ``TargetError`` if surgery cannot cut the student out of a teacher of this configuration.

    A number that the configuration does not give is taken to fit.
    """
    kind = teacher.get("model_type")
    if kind not in BERTS:
        raise TargetError(
            f"surgery knows {', '.join(BERTS)} teachers, not {kind!r}: name another backbone in student.source, or "
            "give student.config instead"
        )
    layers = _number(teacher, "num_hidden_layers")
    if layers is not None:
        if isinstance(student.layers, int) and not 1 <= student.layers <= layers:
            raise TargetError(f"student.layers={student.layers}: the teacher has {layers}")
        if isinstance(student.layers, tuple) and not all(0 <= i < layers for i in student.layers or (-1,)):
            raise TargetError(f"student.layers={student.layers}: the teacher has layers 0..{layers - 1}")
    theirs = {name: _number(teacher, name) for name in WIDTHS}
    ours = {name: value or theirs[name] for name, value in _widths(student).items()}
    for name, field in WIDTHS.items():
        mine, its = ours[name], theirs[name]
        if mine is not None and its is not None and mine > its:
            raise TargetError(f"student.{field} {mine} exceeds the teacher's {its}: surgery only cuts")
    hidden, heads = ours["hidden_size"], ours["num_attention_heads"]
    if hidden and heads and hidden % heads:
        raise TargetError(f"the student's hidden width {hidden} is not divisible by its {heads} heads")
    their_hidden, their_heads = theirs["hidden_size"], theirs["num_attention_heads"]
    if hidden and heads and their_hidden and their_heads and hidden // heads > their_hidden // their_heads:
        raise TargetError("student heads are wider than the teacher's: raise student.heads or lower student.hidden")
    if kind == "electra" and teacher.get("embedding_size", their_hidden) != their_hidden:
        raise TargetError("an ELECTRA with a narrower embedding cannot be cut: give student.config instead")
    most = _number(teacher, "max_position_embeddings")
    if most is not None and positions + position_offset(kind, _number(teacher, "pad_token_id")) > most:
        raise TargetError(f"{positions} positions are more than the teacher has: lower student.positions or max_length")


def position_offset(kind: object, pad_id: int | None) -> int:
    """How many rows of the position table stand before the first token: RoBERTa counts from its padding id + 1.

    MPNet does too, but takes 1 for its padding id whatever the configuration says.
    """
    if kind == "mpnet":
        return 2
    return (1 if pad_id is None else int(pad_id)) + 1 if kind in ROBERTAS else 0


def _widths(student: spec.Student) -> dict[str, int | None]:
    """What the target says of each width, by its name in a configuration."""
    return {name: getattr(student, field) for name, field in WIDTHS.items()}


def _number(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def parameters(shape: Sequence[Tensor]) -> int:
    """How many numbers there are in all."""
    return sum(tensor.count for tensor in shape)


def block_size(width: int, block: int) -> int:
    """The block of rows of ``width``: ``block``, or the least power of two (16 at least) that holds the whole row."""
    return min(block, max(16, 1 << (width - 1).bit_length()))


def weight_bytes(kind: str, rows: int, columns: int, scheme: str, block: int) -> tuple[int, int]:
    """Bytes that a weight's numbers take under a scheme (``float`` is one), and what stands beside them.

    One byte a number and a float scale and a zero point for each output channel, or for a whole table. In 4-bit blocks
    it is half a byte, and two for the scale of each block, which count among the numbers.
    """
    if scheme == "float":
        return 4 * rows * columns, 0
    if scheme == "w4_block":
        size = block_size(columns, block)
        blocks = rows * -(-columns // size)
        return 2 * blocks + (blocks * size if kind == "linear" else rows * columns) // 2, 0
    return rows * columns, 5 * (1 if kind == "embedding" else rows)


def file_bytes(shape: Sequence[Tensor], quant: spec.Quant) -> tuple[int, int]:
    """(least, expected) bytes of the quantized ONNX file.

    The least is what the numbers take: those of ``weight_bytes``, and four for a bias, a norm or anything that
    is to stay in float. Expected are also the scales and zero points, and the graph.
    """
    least = scales = 0
    for tensor in shape:
        kept = tensor.kind in ("bias", "norm", "recurrent")
        scheme = "float" if kept else quant.scheme_of(tensor.name.rpartition(".")[0])
        numbers, beside = weight_bytes(tensor.kind, tensor.rows, tensor.columns, scheme, quant.block)
        least, scales = least + numbers, scales + beside
    graph = GRAPH_BYTES_PER_WEIGHT * sum(tensor.kind not in ("bias", "norm") for tensor in shape)
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
    base = "roberta" if kind in ROBERTAS else kind
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


def _shallow(config: Mapping[str, Any], labels: int) -> Iterator[Tensor]:
    hidden, widths = int(config["hidden_size"]), config.get("widths", ())
    yield Tensor("embeddings.weight", "embedding", int(config["vocab_size"]), hidden)
    if config["model_type"] == "edgekd_text_cnn":
        for i, width in enumerate(widths):
            yield Tensor(f"convolutions.{i}.weight", "convolution", hidden // len(widths), hidden * width)
            yield Tensor(f"convolutions.{i}.bias", "bias", hidden // len(widths))
    else:
        for i, way in product(range(int(config["num_hidden_layers"])), ("forwards", "backwards")):
            for part, columns in (("ih", hidden), ("hh", hidden // 2)):
                yield Tensor(f"lstm.{i}.{way}.weight_{part}_l0", "recurrent", 2 * hidden, columns)
                yield Tensor(f"lstm.{i}.{way}.bias_{part}_l0", "bias", 2 * hidden)
    yield from _linear("classifier", labels, hidden)
