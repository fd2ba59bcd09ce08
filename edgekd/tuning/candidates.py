"""What there is to try: the placements of a student, and the options of a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekd.errors import TargetError
from edgekd.spec import Export, Optimizer, Quant, Target

OWN = "own"
CLASSIFIER = "classifier"
EMBEDDINGS = "*.embeddings"
GRAPHS = {
    "plain": "the graph as it is by default",
    "requantized": "outputs of linear layers in 8 bits, where one node reads them",
    "sequence": "tensors of three dimensions: MatMulIntegerToFloat and BiasGelu in the place of QGemm and Gelu",
    "skip_layer_norm": "SkipLayerNormalization on",
}
"""The forms of ``Export.graph``."""


@dataclass(frozen=True)
class Candidate:
    """One graph to time: how it is quantized, its form, and the ``hidden`` width, where that is not the student's."""

    name: str
    about: str
    quant: Quant
    export: Export
    hidden: int | None = None

    def target(self, target: Target) -> Target | None:
        """The target with this placement; ``None`` where no target can ask for it without being trained anew."""
        if self.hidden:
            return None
        try:
            return replace(target, quant=self.quant, export=self.export)
        except TargetError:
            return None


def placements(target: Target, hidden: int, heads: int, attention: tuple[str, ...]) -> Iterator[Candidate]:
    """The target's own placement, then those that differ from it in one thing.

    ``hidden`` and ``heads`` are the student's, ``attention`` holds globs over its attention's own products. What turns
    out to be no graph (a glob that matches nothing) is found when it is built.
    """
    quant, export = target.quant, target.export
    yield Candidate(OWN, "as the target says", quant, export)
    products = tuple(glob for glob in quant.keep_float if "MatMul" in glob)
    with_products = quant.keep_float if products else (*quant.keep_float, *attention)
    for other in _schemes(target):
        yield Candidate(other.scheme, "another scheme", replace(other, keep_float=with_products), export)
    if products and quant.static:
        kept = tuple(glob for glob in quant.keep_float if glob not in products)
        yield Candidate("attention_int8", "attention's own products in int8", replace(quant, keep_float=kept), export)
    elif quant.static and attention:
        about = "attention's own products in float"
        yield Candidate("attention_float", about, replace(quant, keep_float=with_products), export)
    for glob, name, about in (
        (CLASSIFIER, "classifier", "the classifier"),
        (EMBEDDINGS, "embeddings", "the embedding tables"),
    ):
        kept = tuple(other for other in quant.keep_float if other != glob)
        if glob in quant.keep_float:
            yield Candidate(f"{name}_quantized", f"{about} quantized", replace(quant, keep_float=kept), export)
        else:
            yield Candidate(f"{name}_float", f"{about} in float", replace(quant, keep_float=(*kept, glob)), export)
    for name, about in GRAPHS.items():
        other_form = Candidate(name, about, quant, replace(export, graph=name))  # type: ignore[arg-type]
        if name != export.graph and other_form.target(target) is not None:  # else the scheme has no such graph
            yield other_form
    for width in _widths(hidden, heads):
        yield Candidate(f"hidden_{width}", f"hidden width {width}, random weights", quant, export, width)


def _schemes(target: Target) -> Iterator[Quant]:
    """The other way to find ranges, at run time or beforehand, and four bits, as far as the device has them."""
    quant = target.quant
    for scheme in target.device.schemes:
        other = replace(quant, scheme=scheme)  # type: ignore[arg-type]
        if scheme == quant.scheme or (other.static and (quant.static or not quant.calibration)):
            continue
        without = dict(weights_first=0.0, scales="statistics", per_channel=True, weight_bits=None, activation_bits=None)
        yield other if other.static else replace(other, **without)  # type: ignore[arg-type]


def _widths(hidden: int, heads: int) -> Iterator[int]:
    """A quarter less and a quarter more in each head; nothing where there is no attention."""
    if not heads:
        return
    head = hidden // heads
    quarter = max(1, head // 4)
    for width in (head - quarter, head + quarter):
        if width > 0:
            yield width * heads


def untrained(quant: Quant) -> Quant:
    """``quant`` without what only training reads: two that differ in it have one candidate."""
    return replace(quant, epochs=1, optimizer=Optimizer(), frozen_fraction=0.5, weights_first=0.0)


# -------------------------------------------------------------------------------------------------------------- options

DEFAULT = "default"

OPTIMIZERS = {
    "SkipLayerNormalization": "SkipLayerNormFusion",
    "BiasGelu": "BiasGeluFusion",
    "FusedMatMul": "MatMulScaleFusion",
}
"""Operator of an optimized graph -> the optimizer of onnxruntime that puts it there."""


def options(operators: Mapping[str, int], threads: int) -> dict[str, dict[str, Any]]:
    """The session options to try one by one, by name, for a graph whose optimized form has these operators.

    Of the optimizers only those that did something are switched off; with one thread there is no pool to spin.
    """
    found: dict[str, dict[str, Any]] = {
        DEFAULT: {},
        "no_arena": {"enable_cpu_mem_arena": False},
        "no_memory_pattern": {"enable_mem_pattern": False},
        "no_prepacking": {"session.disable_prepacking": "1"},
    }
    if threads > 1:
        found["no_spinning"] = {"session.intra_op.allow_spinning": "0"}
    for operator, optimizer in OPTIMIZERS.items():
        if operators.get(operator):
            found[f"no_{optimizer}"] = {"disabled_optimizers": [optimizer]}
    return found


def united(chosen: list[dict[str, Any]]) -> dict[str, Any]:
    """Several options at once."""
    whole: dict[str, Any] = {}
    for one in chosen:
        for name, value in one.items():
            whole[name] = [*whole.get(name, []), *value] if isinstance(value, list) else value
    return whole
