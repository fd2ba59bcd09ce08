"""A value of ``spec`` in the words of a target file."""

from __future__ import annotations

import dataclasses
from typing import Any


def literal(value: Any) -> str:
    """``value`` as one writes it in a target file, of a dataclass only what is not as by default."""
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    plain = {
        f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(value)
    }
    given = [(name, getattr(value, name)) for name, default in plain.items() if getattr(value, name) != default]
    return f"{type(value).__name__}({', '.join(f'{name}={literal(found)}' for name, found in given)})"
