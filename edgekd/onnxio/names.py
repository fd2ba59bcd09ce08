"""How graph nodes and torch modules name each other."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable


def module_path(name: str) -> str:
    """``/bert/encoder/layer.0/attention/self/MatMul`` -> ``bert.encoder.layer.0.attention.self.MatMul``."""
    return name.strip("/").replace("/", ".")


def named_in(path: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted node path, or a module that contains it, matches one of the globs."""
    return any(matches(path, pattern) for pattern in patterns)


def matches(path: str, pattern: str) -> bool:
    """The same for one glob."""
    parts = path.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))
