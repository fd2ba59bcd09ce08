"""Which modules and graph nodes a target's globs name, such as those of ``keep_float``."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping


def named_in(path: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted path of a module or node, or of a module that contains it, matches one of the globs."""
    return any(matches(path, pattern) for pattern in patterns)


def matches(path: str, pattern: str) -> bool:
    """The same for one glob."""
    parts = path.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def first_match(path: str, table: Mapping[str, str]) -> str | None:
    """The first glob of a table that matches a dotted path so."""
    return next((pattern for pattern in table if matches(path, pattern)), None)
