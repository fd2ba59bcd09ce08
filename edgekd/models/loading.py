"""Load any Hugging Face classifier or backbone, and save what edgekd trains: the door to transformers."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers import logging as transformers_logging

from edgekd.errors import AssetError, DataError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


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
    the config names them, their order must agree (``DataError``). Otherwise any backbone gets a fresh head. Raises
    ``AssetError`` for weights that are absent, unreadable, or pickles that would have to run code.
    """
    _refuse_unsafe(folder, gguf_file)
    gguf = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf)
        if finetuned:
            _check_labels(config, labels, folder)
        config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
        set_dropout(config, dropout)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False, **gguf
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise AssetError(f"cannot load a sequence classifier from {folder}: {error}") from error
    model.config.problem_type = "single_label_classification"
    return model.float()


def set_dropout(config: Any, value: float | None) -> None:
    """Set every dropout that a configuration knows by one of the usual names; ``None`` leaves it alone."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if value is not None and hasattr(config, name):
            setattr(config, name, value)


def _check_labels(config: Any, labels: Sequence[str], folder: Path) -> None:
    theirs = [config.id2label[i] for i in sorted(config.id2label)]
    if len(theirs) != len(labels):
        raise DataError(
            f"the teacher in {folder} knows {len(theirs)} labels and the data has {len(labels)}: "
            "give the teacher a finetune=Finetune(...), or fix task.labels"
        )
    named = not all(str(name).startswith("LABEL_") for name in theirs)
    if named and theirs != list(labels):
        raise DataError(
            f"the teacher's labels {theirs} are not the data's {list(labels)} in the same order: "
            "set task.labels to the teacher's"
        )


def _refuse_unsafe(folder: Path, gguf_file: str | None) -> None:
    """Pickled weights only if torch can read them without running code (``weights_only``)."""
    if gguf_file or list(folder.glob("*.safetensors")):
        return
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if not pickles:
        raise AssetError(f"no weights in {folder}: expected *.safetensors (or gguf_file=... for a GGUF folder)")
    for path in pickles:
        try:
            torch.load(path, weights_only=True, map_location="meta")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise AssetError(
                f"{path} is a pickle that needs code to load; it was refused. "
                "Convert it to safetensors in a place you trust."
            ) from error


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> Any:
    """The fast tokenizer in ``folder``, with a padding token (a decoder's end of text serves if it has none)."""
    gguf = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, **gguf)
    except (OSError, ValueError) as error:
        raise AssetError(f"cannot load a tokenizer from {folder}: {error}") from error
    if not tokenizer.is_fast:
        raise AssetError(
            f"{folder} has only a slow tokenizer; edgekd needs tokenizer.json (the tokenizers library's format)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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


def parameters(model: torch.nn.Module) -> int:
    """The number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())
