"""The folder around an ONNX file that ``optimum`` and transformers.js load: configuration and tokenizer beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import ExportError
from edgekd.store import write_json

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LOCAL = ("_name_or_path", "name_or_path", "dtype", "torch_dtype")
"""Entries that tell of the machine or the training, not of the model."""


def write(folder: Path, source: Path, labels: Sequence[str]) -> None:
    """Put the configuration (with ``labels`` as id2label) and tokenizer files of ``source`` into ``folder``.

    ``source`` is a Hugging Face model folder. Raises ``ExportError`` if its configuration or fast tokenizer is missing.
    """
    config = _json(source / "config.json")
    config |= {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
        "num_labels": len(labels),
    }
    if not (source / TOKENIZER).is_file():
        raise ExportError(f"{source} has no {TOKENIZER}; save the model together with its fast tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {name: config[name] for name in sorted(config) if name not in LOCAL})
    for name in TOKENIZER_FILES:
        if not (source / name).is_file():
            continue
        if name == "tokenizer_config.json":
            content = _json(source / name)
            write_json(folder / name, {key: content[key] for key in sorted(content) if key not in LOCAL})
        else:
            shutil.copyfile(source / name, folder / name)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read ({error}); save the model with its configuration and tokenizer"
        ) from error
    if not isinstance(content, dict):
        raise ExportError(f"{path} holds no JSON object; save the model with its configuration and tokenizer again")
    return content
