"""Load any Hugging Face classifier or backbone, and save what edgekd trains: the door to transformers."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import transformers
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers import logging as transformers_logging
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from edgekd.errors import AssetError, DataError, TargetError
from edgekd.models import text_cnn, text_lstm

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
for own in (text_cnn, text_lstm):
    AutoConfig.register(own.Config.model_type, own.Config, exist_ok=True)
    AutoModelForSequenceClassification.register(own.Config, own.Classifier, exist_ok=True)


def load_classifier(
    folder: Path,
    labels: Sequence[str],
    *,
    finetuned: bool,
    gguf_file: str | None = None,
    attention: str | None = None,
    dropout: float | None = None,
) -> Any:
    """The sequence classifier in ``folder``, float32; ``attention="eager"`` is the form that exports and fuses best.

    ``finetuned`` says that the folder already holds a trained head for these ``labels``: then their number and, where
    the config names them, their order must agree (``DataError``). Otherwise any backbone gets a fresh head, and so does
    a classifier of another number of labels. Raises ``AssetError`` for weights that are absent, unreadable, not those
    of the configuration, or pickles that would have to run code.
    """
    if gguf_file is None:
        _refuse_unsafe(folder)
    given = _options(gguf_file)
    config = _config(folder, gguf_file)
    if finetuned:
        _check_labels(config, labels, folder)
    config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    set_dropout(config, dropout)
    if hasattr(config, "reference_compile"):  # ModernBERT compiles itself on a GPU: its layers could not be observed
        config.reference_compile = False
    with _reading(f"a sequence classifier from {folder}"):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # they are looked for below, and named
            output_loading_info=True,
            **given,
            **_unpacked(gguf_file),
        )
    _check_weights(model, found, folder, finetuned)
    model.config.problem_type = "single_label_classification"
    if gguf_file is not None and hasattr(model, "hf_quantizer"):
        model.hf_quantizer.remove_quantization_config(model)  # its numbers are plain ones now; marked, none are saved
    return model.float()


def check(folder: Path, gguf_file: str | None = None) -> Any:
    """A model's configuration. Raises what ``load_classifier`` and the stages after it would, without reading numbers:
    ``AssetError`` for weights that are not there or not whole, ``TargetError`` for a family that cannot teach.
    """
    config = _config(folder, gguf_file)
    if gguf_file is None:
        _refuse_unsafe(folder)
        for path in _safe_files(folder):
            with _reading(f"the weights in {path}"), safe_open(path, "pt"):  # it compares the length with the header's
                pass
    check_family(config, str(folder))
    return config


def check_family(config: Any, who: str) -> None:
    """Raise ``TargetError`` for a configuration that does not say how many layers and channels its model has."""
    missing = [name for name in ("num_hidden_layers", "hidden_size") if getattr(config, name, None) is None]
    if missing:
        raise TargetError(
            f"{who}: models of type {config.model_type!r} are not supported, whose configuration gives no "
            f"{' and no '.join(missing)}: take one of another type"
        )


def names_labels(folder: Path, gguf_file: str | None = None) -> bool:
    """Whether the configuration calls the labels anything but ``LABEL_0``, ``LABEL_1`` and so on."""
    return _named(_config(folder, gguf_file))


def _config(folder: Path, gguf_file: str | None) -> Any:
    with _reading(f"the configuration of {folder}"):
        return AutoConfig.from_pretrained(folder, **_options(gguf_file))


def set_dropout(config: Any, value: float | None) -> None:
    """Set every dropout that a configuration knows by one of the usual names; ``None`` leaves it alone."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if value is not None and hasattr(config, name):
            setattr(config, name, value)


def _options(gguf_file: str | None) -> dict[str, Any]:
    return {"trust_remote_code": False} | ({"gguf_file": gguf_file} if gguf_file else {})


def _unpacked(gguf_file: str | None) -> dict[str, Any]:
    """That numbers shall not stay in the blocks of a GGUF file: transformers 5 leaves them there where it can."""
    packed = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": packed(dequantize=True)} if gguf_file and packed else {}


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what the libraries raise for files that they cannot read into ``AssetError``."""
    try:
        yield
    except Exception as error:  # each has error types of its own, tokenizers a bare Exception
        reason = textwrap.shorten(str(error) or repr(error), 400)
        raise AssetError(f"cannot load {what}: {reason}; check its files, or fetch them again") from error


def _check_labels(config: Any, labels: Sequence[str], folder: Path) -> None:
    theirs = [config.id2label[i] for i in sorted(config.id2label)]
    if len(theirs) != len(labels):
        raise DataError(
            f"the teacher in {folder} knows {len(theirs)} labels and the data has {len(labels)}: "
            "give the teacher a finetune=Finetune(...), or fix task.labels"
        )
    if _named(config) and theirs != list(labels):
        cure = "set task.labels to the teacher's" if {*theirs} == {*labels} else "give it a finetune=Finetune(...)"
        raise DataError(f"the teacher's labels {theirs} are not the data's {list(labels)} in the same order: {cure}")


def _named(config: Any) -> bool:
    return not all(str(name).startswith("LABEL_") for name in config.id2label.values())


def _check_weights(model: Any, found: Mapping[str, Any], folder: Path, finetuned: bool) -> None:
    """Raise ``AssetError`` if parameters were left at random that must not be, as transformers does without a word.

    ``found`` is its account of the loading. A fresh head may be random; the body may not, but for a pooler, which many
    backbones come without.
    """
    names = {name for name, _ in model.named_parameters() if ".pooler." not in name}
    body = {name for name in names if name.startswith(f"{model.base_model_prefix}.")}
    other_shape = (key if isinstance(key, str) else key[0] for key in found["mismatched_keys"])  # with both shapes
    lost = names & {*found["missing_keys"], *other_shape}
    if finetuned and lost - body:
        raise AssetError(
            f"{folder} has no classification head ({min(lost - body)} is not among its weights): "
            "give the teacher a finetune=Finetune(...)"
        )
    if lost & body:
        raise AssetError(
            f"the weights in {folder} are not those of its config.json: {min(lost & body)} is missing or has another "
            "shape; fetch the folder again"
        )


def _refuse_unsafe(folder: Path) -> None:
    """Pickled weights only if torch can read them without running code (``weights_only``)."""
    for path in _pickles(folder):
        try:
            torch.load(path, weights_only=True, map_location="meta")
        except Exception as error:  # a broken file makes torch trip over anything
            with path.open("rb") as file:
                whole = file.read(1) in (b"P", b"\x80")  # how a zip archive and a pickle begin
            if whole and isinstance(error, pickle.UnpicklingError):
                raise AssetError(
                    f"{path} is a pickle that needs code to load; it was refused. "
                    "Convert it to safetensors in a place you trust."
                ) from error
            raise AssetError(f"{path} is truncated or holds no weights; fetch it again") from error


def _pickles(folder: Path) -> list[Path]:
    """The pickles that transformers would load from ``folder``: none if there are safetensors."""
    single, index = folder / WEIGHTS_NAME, folder / WEIGHTS_INDEX_NAME
    if any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return []
    if single.is_file():
        return [single]
    if not index.is_file():
        raise AssetError(
            f"no weights in {folder}: expected {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME} "
            "(or gguf_file=... for a GGUF folder)"
        )
    return _shards(index)


def _safe_files(folder: Path) -> list[Path]:
    """The safetensors that transformers would load from ``folder``; none if it would load pickles."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    return [single] if single.is_file() else _shards(index) if index.is_file() else []


def _shards(index: Path) -> list[Path]:
    with _reading(f"the list of weight files {index}"):
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    shards = sorted({index.parent / name for name in files})
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise AssetError(
            f"{index.parent} lacks the weight files {', '.join(missing)}, which {index.name} lists: fetch them"
        )
    return shards


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> Any:
    """The fast tokenizer in ``folder``, as ``wrap`` makes it, with a padding token (if need be another special one).

    Raises ``AssetError`` if there is none, only a slow one, or one with tokens that the model has no embedding for.
    """
    given = _options(gguf_file)
    with _reading(f"a tokenizer from {folder}"):
        config = AutoConfig.from_pretrained(folder, **given)
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, use_fast=True, **given)
    if not tokenizer.is_fast:
        raise AssetError(
            f"{folder} has only a slow tokenizer; edgekd needs tokenizer.json (the tokenizers library's format)"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise AssetError(f"the tokenizer in {folder} has no pad_token, eos_token or unk_token: name one in its files")
    rows = getattr(config.get_text_config(), "vocab_size", None)
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if rows is not None and i >= rows}
    if beyond:
        raise AssetError(
            f"the tokenizer in {folder} knows tokens that the model has no embedding for ({rows} embeddings; "
            f"{beyond[min(beyond)]!r} is token {min(beyond)}): take the tokenizer that belongs to the model"
        )
    return wrap(tokenizer.backend_tokenizer, tokenizer)


def wrap(backend: Tokenizer, like: Any) -> Any:
    """``backend`` as transformers' plain fast tokenizer, with the special tokens of ``like``; it cuts and pads right.

    Plain, because the classes of single models change what they load: Llama's adds an ``<unk>`` that has no embedding.
    Right, whatever ``like`` does, because training, ``edgekd.deploy``, optimum and transformers.js (which cuts nowhere
    else) must see the same tokens; the saved tokenizer_config.json says so.
    """
    start = json.loads(backend.to_str())["pre_tokenizer"] or {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **like.special_tokens_map,
        model_input_names=like.model_input_names,
        model_max_length=like.model_max_length,
        add_prefix_space=start.get("add_prefix_space", False),  # told otherwise, it changes the backend
        padding_side="right",
        truncation_side="right",
    )


def fast_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The ``tokenizers.Tokenizer`` of a folder that edgekd saved, and its padding id."""
    tokenizer = load_tokenizer(folder)
    return tokenizer.backend_tokenizer, int(tokenizer.pad_token_id)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as a Hugging Face folder of safetensors and JSON; replaces what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.cpu().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    _save_tokenizer_as_before(tokenizer, folder)


def _save_tokenizer_as_before(tokenizer: Any, folder: Path) -> None:
    """Add what transformers 5 no longer writes, since version 4 and transformers.js read it."""
    specials, config = folder / "special_tokens_map.json", folder / "tokenizer_config.json"
    if not specials.exists():
        specials.write_text(json.dumps(tokenizer.special_tokens_map, indent=2, sort_keys=True), encoding="utf-8")
        content = json.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config.write_text(json.dumps(content, indent=2), encoding="utf-8")


def parameters(model: torch.nn.Module) -> int:
    """The number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())
