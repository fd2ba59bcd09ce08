"""Build the student that a target asks for: cut from a backbone, or fresh from a configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForSequenceClassification

from edgekd import shape, spec
from edgekd.distill.data import tokenise
from edgekd.errors import TargetError
from edgekd.models import surgery, vocabulary
from edgekd.models import tokenizer as own_tokenizer
from edgekd.models.loading import load_tokenizer, parameters, wrap
from edgekd.progress import Progress
from edgekd.tasks.sampling import stratified

SAMPLE = 256  # training examples that decide what surgery keeps


def build(
    student: spec.Student,
    teacher: Any | None,
    folder: Path,
    data: Any,
    max_length: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """The student (float32, CPU), its tokenizer, and a summary of what was kept.

    ``teacher`` is the classifier that it is cut from, ``folder`` holds its tokenizer; ``data`` is the data set whose
    training texts choose vocabulary and importance. Without a ``teacher`` the tokenizer is trained on those texts.
    """
    torch.manual_seed(seed)
    if teacher is None:
        tokenizer = own_tokenizer.train(data.train.texts, student.vocabulary or shape.VOCABULARY)
    else:
        tokenizer = load_tokenizer(folder)
    whole, pad_id = tokenizer.backend_tokenizer, int(tokenizer.pad_token_id)
    tokenizer, old_ids = cut_vocabulary(student, tokenizer, data.train.texts)
    tokenizer.model_max_length = max_length
    positions = student.positions or max_length
    size = len(old_ids) if old_ids is not None else len(tokenizer) if teacher is None else teacher.config.vocab_size
    if student.config is not None:
        model = _from_config(student.config, data.labels, tokenizer, size, positions)
        layers: tuple[int, ...] = ()
    else:
        assert teacher is not None  # a target with a black box has a config
        config, layers = surgery.student_config(teacher.config, student, positions, size)
        config.pad_token_id = tokenizer.pad_token_id
        if student.init == "random":
            model = type(teacher)(config)
        else:
            rows = stratified(data.train.labels, SAMPLE, seed)
            texts = [data.train.texts[row] for row in rows]
            tokens = tokenise(whole, texts, data.train.labels[rows], max_length, pad_id)
            scores = surgery.importance(teacher, tokens, progress)
            model = surgery.cut(teacher, config, layers, old_ids, scores, principal=student.init == "principal")
    config = model.config
    unknown = tokenizer.unk_token_id
    rates = {
        split: vocabulary.unknown_rate(tokenizer.backend_tokenizer, getattr(data, split).texts, unknown)
        for split in ("train", "validation", "test")
    }
    summary = {
        "parameters": parameters(model),
        "layers": int(config.num_hidden_layers),
        "hidden": int(config.hidden_size),
        "heads": int(getattr(config, "num_attention_heads", 0)),
        "ffn": int(getattr(config, "intermediate_size", 0) or getattr(config, "hidden_dim", 0)),
        "kept_layers": list(layers),
        "init": student.init if student.config is None else "random",
        "vocabulary": {
            "size": size,
            **{k: {s: r[k] for s, r in rates.items()} for k in ("unknown_rate", "tokens_per_document")},
        },
    }
    return model, tokenizer, summary


def cut_vocabulary(student: spec.Student, tokenizer: Any, texts: Sequence[str]) -> tuple[Any, list[int] | None]:
    """The student's tokenizer, cut out of another, and each token's old id; that one itself and ``None`` where it is
    kept whole. Raises as ``vocabulary.trim`` does.
    """
    if student.vocabulary is None or student.vocabulary >= len(tokenizer):
        return tokenizer, None
    trimmed, old_ids = vocabulary.trim(tokenizer.backend_tokenizer, texts, student.vocabulary)
    return wrap(trimmed, tokenizer), old_ids


def skeleton(options: Mapping[str, object]) -> Any:
    """A classifier of a student's own configuration as torch's meta device has it: its modules, without any numbers.

    Raises ``TargetError`` as ``build`` does.
    """
    with torch.device("meta"):
        return _classifier(options, {})


def _from_config(options: dict[str, object], labels: Sequence[str], tokenizer: Any, size: int, positions: int) -> Any:
    settings: dict[str, object] = {
        "vocab_size": size,
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
        "max_position_embeddings": positions + shape.position_offset(options.get("model_type"), tokenizer.pad_token_id),
    }
    if fixed := sorted(options.keys() & (settings.keys() - {"max_position_embeddings"})):
        raise TargetError(f"student.config sets {', '.join(fixed)}, which teacher and data decide: leave them out")
    return _classifier(options, settings)


def _classifier(options: Mapping[str, object], settings: Mapping[str, object]) -> Any:
    kind = str(options.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        near = get_close_matches(kind, list(CONFIG_MAPPING), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ", e.g. {'model_type': 'distilbert', ...}"
        raise TargetError(f"student.config needs a model_type that transformers knows, not {kind!r}{hint}")
    given = {name: value for name, value in options.items() if name != "model_type"}
    try:
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **{**settings, **given}))
    except Exception as error:  # each architecture checks its settings in its own way
        reason = textwrap.shorten(str(error) or repr(error), 300)
        raise TargetError(
            f"student.config makes no text classifier of type {kind!r} ({reason}): see that model's page in the "
            "documentation of transformers"
        ) from error
