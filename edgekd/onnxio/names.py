"""How graph nodes and torch modules name each other."""

from __future__ import annotations

import re
from collections.abc import Collection

CALL = re.compile(r"#\d+")


def module_path(name: str) -> str:
    """``/bert/encoder/layer.0/attention/self/MatMul`` -> ``bert.encoder.layer.0.attention.self.MatMul``.

    The number of a call (``marked``) is no part of it: layers that share a module are all named by it.
    """
    return CALL.sub("", name).strip("/").replace("/", ".")


def located(name: str, modules: Collection[str]) -> str:
    """The path of the module whose node this is, with the number of a call; ``modules`` are the paths of all."""
    return ".".join(said_once(name, modules).strip("/").split("/")[:-1])


def said_once(name: str, modules: Collection[str]) -> str:
    """A node's name without what the exporter says again inside a ``Sequential``, so that ``module_path`` holds there.

    It writes ``/layer/layer.0/conv/Conv`` for a node of ``layer.0.conv``; here that is ``/layer/0/conv/Conv``.
    ``modules`` are the paths of all modules.
    """
    *scopes, last = name.split("/")
    path: list[str] = []
    for place, scope in enumerate(scopes):
        parts = scope.split(".") if scope else []
        said = [k for k in range(len(parts)) if path[len(path) - k :] == parts[:k]]
        again = next((k for k in said if CALL.sub("", ".".join([*path, *parts[k:]])) in modules), 0)
        scopes[place] = ".".join(parts[again:])
        path += parts[again:]
    return "/".join([*scopes, last])


def marked(name: str, modules: Collection[str]) -> str:
    """A node's name as the exporter gives it, with calls of one module told apart by a number behind ``#``.

    ``modules`` are the paths of all modules. The exporter writes ``attention_1`` for the second call of ``attention``,
    which could be another module; here it is ``attention#2``.
    """
    *scopes, last = name.split("/")
    path = ""
    for place, scope in enumerate(scopes):
        stem, _, number = scope.rpartition("_")
        whole, before = (f"{path}.{part}".lstrip(".") for part in (scope, stem))
        if whole not in modules and before in modules and number.isdigit():
            scopes[place], whole = f"{stem}#{int(number) + 1}", before
        path = whole
    return "/".join([*scopes, last])
