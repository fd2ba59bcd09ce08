"""What rounding attention's own products costs an exported file its answers: one of them in float or in int8 at a time.

They got their ranges after training (``requantize``), so no module stands for them. The file is compared with itself,
all of its products in float and all else as it is: KL(in float ‖ in int8) of the class distributions, in nats.
``alone`` and ``won_back`` are as in ``quant.sensitivity``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.distill import evaluate
from edgekd.distill.data import Tokens, by_length
from edgekd.onnxio import files, passes
from edgekd.onnxio.audit import session
from edgekd.onnxio.bridge import Factor, factors, quantized
from edgekd.onnxio.names import module_path
from edgekd.progress import Progress
from edgekd.quant import sensitivity


def measure(path: Path, tokens: Tokens, progress: Progress) -> dict[str, Any] | None:
    """Measure the products of a file on ``tokens``; ``None`` where none is in int8.

    Returns ``kl`` of all products together; ``layers``: [{layer, alone, won_back}], a row for each product, named as
    ``keep_float`` names it; ``quantizers``: [{quantizer, layers, alone, won_back}], a row for each of its factors;
    both worst first; ``keep_float``: [{layer, scheme, kl, share}], as ``sensitivity.measure`` has it.
    """
    model = files.read(path)
    found = factors(model)
    if not found:
        return None
    groups = {module_path(name): {one for one in found if one[0] == name} for name, _ in found}
    single = {f"{module_path(name)}: {tensor}": {(name, tensor)} for name, tensor in found}
    rows = groups | single
    total = 2 + 2 * len(rows) + min(sensitivity.TRIED, len(groups))
    with progress.bar("diagnose: products of attention", total=total, unit="pass") as advance:
        floats: set[Factor] = set()

        def answers() -> NDArray[np.float32]:
            advance()
            return _logits(in_float(model, floats), tokens)

        def kl() -> float:
            return evaluate.compare(answers(), tokens.labels, reference)["kl"]

        with _added(floats, set(found)):
            reference = answers()
        whole, alone, without = kl(), {}, {}
        for name, own in rows.items():
            with _added(floats, set(found) - own):
                alone[name] = kl()
            with _added(floats, own):
                without[name] = kl()
        ranked = sorted(rows, key=lambda name: (-alone[name], without[name]))
        kept = sensitivity.refine(
            [name for name in ranked if name in groups],
            lambda name: [("float", _added(floats, groups[name]))],
            whole,
            kl,
        )
    figures = {name: {"alone": alone[name], "won_back": whole - without[name]} for name in ranked}
    return {
        "kl": whole,
        "layers": [{"layer": name, **row} for name, row in figures.items() if name in groups],
        "quantizers": [
            {"quantizer": name, "layers": [name.partition(":")[0]], **row}
            for name, row in figures.items()
            if name in single
        ],
        "keep_float": kept,
    }


def in_float(model: onnx.ModelProto, chosen: Collection[Factor]) -> onnx.ModelProto:
    """The model with the chosen products reading these tensors as they are; the one given is not changed."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    sources = quantized(own)
    for node in own.graph.node:
        for place, name in enumerate(node.input):
            if (node.name, sources.get(name)) in chosen:
                node.input[place] = sources[name]
    return passes.apply(own, ("dead",))


def _logits(model: onnx.ModelProto, tokens: Tokens) -> NDArray[np.float32]:
    """(N, C), by onnxruntime's optimized graph."""
    runner, names = session(model), [value.name for value in model.graph.input]
    found: dict[int, NDArray[np.float32]] = {}
    for rows in by_length(tokens, sensitivity.BATCH):
        found |= dict(zip(rows.tolist(), runner.run(None, tokens.feed(rows, names))[0], strict=True))
    return np.stack([found[row] for row in range(len(tokens))])


@contextmanager
def _added(floats: set[Factor], more: set[Factor]) -> Iterator[None]:
    """``more`` among ``floats``, for as long as it takes."""
    new = more - floats
    floats |= new
    try:
        yield
    finally:
        floats -= new
