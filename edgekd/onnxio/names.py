"""How graph nodes and torch modules name each other."""

from __future__ import annotations


def module_path(name: str) -> str:
    """``/bert/encoder/layer.0/attention/self/MatMul`` -> ``bert.encoder.layer.0.attention.self.MatMul``."""
    return name.strip("/").replace("/", ".")
