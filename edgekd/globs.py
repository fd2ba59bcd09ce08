"""Which modules and graph nodes a target's globs name, such as those of ``keep_float``."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping

from edgekd.errors import TargetError

PRODUCTS = ("Einsum", "MatMul")
"""What a graph calls the nodes that multiply two activations; ``_1`` and so on follow where a module has several."""
PROJECTIONS = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
"""What families call the layers that make queries, keys and values."""
FUSED = ("Wqkv", "c_attn", "qkv")
"""What they call one layer that makes all three, one after the other; ``query_key_value`` takes turns by head."""


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

    One in ``keep_float`` names a module, or a product of the graph in one that has no weight of its own; one in
    ``mixed`` decides for a layer that neither ``keep_float`` nor a glob before it names.
    """
    modules = tuple(modules)
    for pattern in keep_float:
        inside, _, node = pattern.rpartition(".")
        inside = inside or "*" * pattern.startswith("*")
        product = any(fnmatch.fnmatchcase(name, node) for op in PRODUCTS for name in (op, f"{op}_1"))
        holders = [name for name in modules if product and name not in layers]
        if not any(matches(name, pattern) for name in modules) and not any(matches(name, inside) for name in holders):
            raise TargetError(
                f"keep_float: {pattern!r} matches no module of the student, nor a product of activations in one: "
                "correct it, or remove it; a layer's own product goes by the layer's name"
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


def projections(layers: Iterable[str]) -> list[tuple[str, ...]]:
    """Those of ``layers`` that make a block's queries, keys and values, block by block; one where one makes all."""
    known = dict.fromkeys(layers)
    found = []
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in known):
        for parts in (*PROJECTIONS, *((one,) for one in FUSED)):
            names = tuple(f"{parent}.{part}" if parent else part for part in parts)
            if all(name in known for name in names):
                found.append(names)
                break
    return found


def check_attention(keep_float: tuple[str, ...], scheme: str, layers: Collection[str]) -> None:
    """Raise ``TargetError`` where attention's own products would run in float though no glob names them.

    Only the static schemes have ranges for them. Of ``layers`` the ``projections`` tell where they are.
    """
    for names in () if scheme.endswith("_static") else projections(layers):
        attention = names[0].rpartition(".")[0]
        if not named_in(f"{attention}.MatMul", keep_float):
            raise TargetError(
                f"{scheme} has no ranges for the products of {attention}, which would run in float: name them in "
                f"keep_float, as '*.{attention.rpartition('.')[2]}.MatMul*', or choose a static scheme"
            )


def odd_rows(table: str, width: int) -> str:
    """Why an embedding of that width has no ``w4_block``."""
    return (
        f"the rows of {table} hold {width} numbers, and in 4 bits two share a byte: choose an even width, or add it to "
        "keep_float"
    )
