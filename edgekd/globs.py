"""Which modules and graph nodes a target's globs name, such as those of ``keep_float``."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping

from edgekd.errors import TargetError

PRODUCTS = ("Conv", "Einsum", "Gemm", "MatMul")
"""What a graph calls its nodes that multiply; ``_1`` and so on follow where a module has several."""


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


def check(keep_float: Iterable[str], mixed: Mapping[str, str], layers: Collection[str], modules: Iterable[str]) -> None:
    """Raise ``TargetError`` for a glob that can name nothing, and where all ``layers`` with a weight stay in float.

    One in ``keep_float`` names a module, or a product of the graph in one; one in ``mixed`` decides for a layer that
    neither ``keep_float`` nor a glob before it names.
    """
    modules = tuple(modules)
    for pattern in keep_float:
        inside, _, node = pattern.rpartition(".")
        inside = inside or "*" * pattern.startswith("*")
        product = any(fnmatch.fnmatchcase(name, node) for op in PRODUCTS for name in (op, f"{op}_1"))
        if not any(matches(name, pattern) or (product and matches(name, inside)) for name in modules):
            raise TargetError(
                f"keep_float: {pattern!r} matches no module of the student, nor a product in one: correct it, or "
                "remove it"
            )
    left = [layer for layer in layers if not named_in(layer, keep_float)]
    chosen = [first_match(layer, mixed) for layer in left]
    for glob in mixed:
        if glob not in chosen:
            raise TargetError(
                f"quant.mixed: {glob!r} matches no layer that keep_float and the globs before it leave: correct it, or "
                "remove it"
            )
    if all(glob is not None and mixed[glob] == "float" for glob in chosen):
        raise TargetError("this recipe quantizes nothing: keep_float matches every layer, or the model has no Linear")
