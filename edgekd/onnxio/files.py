"""Reading and writing ``.onnx`` files: whole or not at all, and the same bytes for the same model."""

from __future__ import annotations

import os
from pathlib import Path

import onnx

from edgekd.errors import ExportError

LARGEST = 2**31 - 1
"""Protocol buffers hold no more in one message."""


def read(path: Path) -> onnx.ModelProto:
    """Parse a model whose weights are inside the file. Raises ``ExportError`` where it is missing or no model."""
    try:
        return onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # the parser's own error type lives in a package without type information
        raise ExportError(f"{path} cannot be read as an ONNX model ({error}); export it again") from error


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write the model so that the path has, after any crash, either its old content or all of the new.

    Map fields are sorted, so equal models give equal bytes. Raises ``ExportError`` above 2 GiB.
    """
    try:
        content = model.SerializeToString(deterministic=True)
    except Exception as error:  # likewise
        raise ExportError(f"{path.name} is larger than an ONNX file can be (2 GiB); choose a smaller model") from error
    if len(content) > LARGEST:
        raise ExportError(f"{path.name} is larger than an ONNX file can be (2 GiB); choose a smaller model")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
