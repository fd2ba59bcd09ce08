"""One model, three ways to run it: the fake-quantized torch module, onnxruntime as written, onnxruntime optimized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.errors import ExportError
from edgekd.onnxio import files, scales
from edgekd.onnxio.agreement import apart, compare
from edgekd.onnxio.audit import session
from edgekd.onnxio.names import located, module_path
from edgekd.quant.grids import Grid

Array = NDArray[Any]
Feed = dict[str, Array]

WAYS = ("torch", "ort_plain", "ort_optimized")
PAIRS = (("torch", "ort_plain"), ("torch", "ort_optimized"), ("ort_plain", "ort_optimized"))
DEPARTED = 0.01
"""Relative RMS error from which a module computes something else: rounding alone stays orders below."""
MOVES = {"QuantizeLinear", "Reshape", "Slice"}
"""What may stand behind a module's output under the module's name, and is not the output."""
TRACED = 4
"""Feeds on which the outputs of all modules are compared."""


def gate(
    model: nn.Module, path: Path, feeds: Sequence[Feed], labels: Array, *, min_agreement: float, max_score_gap: float
) -> dict[str, Any]:
    """Compare the three on ``feeds`` (int64 arrays (batch, sequence) by input name) with one label per row.

    Returns ``examples``; ``score`` by way; ``pairs``: by pair ``agreement`` (share of equal argmax), ``score_gap`` (in
    accuracy), ``score_p`` (how likely by chance), ``max_abs`` and ``rms`` (of logits); ``module``: whose output departs
    most between torch and plain onnxruntime on a few feeds, given the same input, and its relative RMS ``error``.

    Raises ``ExportError`` when a pair agrees on less than ``min_agreement``, or has scores further apart than
    ``max_score_gap``, and not by chance (``agreement.apart``), or answers something not finite, and when a module's
    output departs by more than 1% (a wrong weight shows there though the answers may not change yet). The message
    names the first tensor, in the order of the graph, that departs; before all that, a scale or zero point that is not
    its quantizer's.
    """
    graph = files.read(path)
    scales.check(model, graph)
    answers = {
        "torch": np.concatenate([_torch(model, feed, graph) for feed in feeds]),
        "ort_plain": _run(graph, feeds, optimize=False),
        "ort_optimized": _run(graph, feeds, optimize=True),
    }
    labels = np.asarray(labels)
    if len(labels) != len(answers["torch"]):
        raise ExportError(f"parity got {len(labels)} labels for {len(answers['torch'])} examples; pass one a row")
    errors = _errors(model, graph, feeds[:TRACED], *PAIRS[0])
    largest = max(errors, key=lambda row: row[2], default=None)
    report: dict[str, Any] = {
        "examples": len(labels),
        "score": {way: float((answers[way].argmax(1) == labels).mean()) for way in WAYS},
        "pairs": {f"{a}/{b}": compare(answers[a], answers[b], labels) for a, b in PAIRS},
        "module": largest and dict(zip(("module", "tensor", "error"), largest, strict=True)),
    }
    for a, b in PAIRS:
        row = report["pairs"][f"{a}/{b}"]
        finite = all(np.isfinite(answers[way]).all() for way in (a, b))
        if not finite or apart(row, len(labels), min_agreement, max_score_gap):
            worst = feeds[_worst(feeds, answers[a], answers[b])]
            found = (
                "give answers that are not finite" if not finite else f"agree on {row['agreement']:.2%} of the examples"
            )
            raise ExportError(
                f"{a} and {b} {found}, with scores {report['score'][a]:.4f} and {report['score'][b]:.4f} "
                f"(asked for: {min_agreement:.2%}, and scores within {max_score_gap:g}). "
                + _blame(_errors(model, graph, [worst], a, b), a, b)
            )
    if any(not error <= DEPARTED for _, _, error in errors):
        raise ExportError(f"torch and the exported file compute different things. {_blame(errors, *PAIRS[0])}")
    return report


REWRITTEN = {"attention": "the products of attention in int8", "outputs": "the outputs of linear layers in int8"}
PLAIN = 'leave export.graph at "plain"'


def gate_graphs(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    added: Mapping[str, Grid],
    feeds: Sequence[Feed],
    labels: Array,
    *,
    min_agreement: float,
    max_score_gap: float,
    what: str = "attention",
) -> dict[str, float]:
    """Compare a graph with itself after the tensors ``added`` were quantized by these grids, both optimized.

    ``what`` is the step that was taken (``rewrite.steps``). Returns the row of a pair, as in ``gate``. Raises
    ``ExportError`` when they agree on less than ``min_agreement`` or their scores differ by too much, naming the tensor
    that loses most, and for a constant that is not as it has to be (``scales.check_added``).
    """
    scales.check_added(before, after, added)
    one, other = (_run(graph, feeds, optimize=True) for graph in (before, after))
    row = compare(one, other, np.asarray(labels))
    if apart(row, len(labels), min_agreement, max_score_gap):
        raise ExportError(
            f"with {REWRITTEN.get(what, what)} the file agrees with itself on {row['agreement']:.2%} of the "
            f"examples, and its score moves by {row['score_gap']:.4f} (asked for: {min_agreement:.2%}, and scores "
            f"within {max_score_gap:g}). {_coarsest(after, added, feeds[:TRACED])}"
            + ("name these products in keep_float, e.g. '*.attention.self.MatMul*'" if what == "attention" else PLAIN)
        )
    return row


def _coarsest(graph: onnx.ModelProto, added: Mapping[str, Grid], feeds: Sequence[Feed]) -> str:
    """Say which of the tensors ``added`` is furthest from itself in integers."""
    floats = {node.input[0]: node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    pairs = {n.input[0]: floats[n.output[0]] for n in graph.graph.node if n.op_type == "QuantizeLinear"}
    pairs = {tensor: rounded for tensor, rounded in pairs.items() if tensor in added}
    runner = session(_opened(graph, [*pairs, *pairs.values()]), optimize=False)
    errors = dict.fromkeys(pairs, 0.0)
    for feed in feeds:
        given = {value.name: feed[value.name] for value in graph.graph.input}
        found = runner.run([*pairs, *pairs.values()], given)
        for tensor, one, other in zip(pairs, found, found[len(pairs) :], strict=False):
            errors[tensor] = max(errors[tensor], _relative(one, other))
    worst = max(errors, key=errors.__getitem__, default=None)
    return "" if worst is None else f"{worst} departs most, {errors[worst]:.1%} off in integers: "


def _torch(model: nn.Module, feed: Feed, graph: onnx.ModelProto) -> Array:
    device = next(model.parameters()).device
    names = [value.name for value in graph.graph.input]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(**{name: torch.from_numpy(feed[name]).to(device) for name in names})
    finally:
        model.train(training)
    logits: Array = output.logits.float().cpu().numpy()
    return logits


def _run(graph: onnx.ModelProto, feeds: Sequence[Feed], optimize: bool) -> Array:
    runner = session(graph, optimize=optimize)
    names = [value.name for value in graph.graph.input]
    return np.concatenate([runner.run(["logits"], {name: feed[name] for name in names})[0] for feed in feeds])


def _opened(graph: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The same with those tensors among its outputs."""
    opened = onnx.ModelProto()
    opened.CopyFrom(graph)
    known = {value.name for value in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return opened


def _worst(feeds: Sequence[Feed], one: Array, other: Array) -> int:
    """The feed on which the two differ most."""
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(np.abs(one - other).max(1), nan=np.inf)
    rows = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])
    return int(np.searchsorted(rows, apart.argmax(), side="right"))


def _blame(errors: list[tuple[str, str, float]], a: str, b: str) -> str:
    """Say in words where the two part: beside torch each error is a module's own, otherwise they add up on the way."""
    largest = max((error for _, _, error in errors), default=0.0)
    limit = DEPARTED if a == "torch" else max(DEPARTED, largest / 2)
    for name, tensor, error in errors:
        if not error < limit:
            return (
                f"The first tensor that departs is {tensor} (the output of {name}), {error:.1%} off between {a} and "
                f"{b}: look at the scales, zero points and weights of that module in the exported file"
            )
    return f"No module's output departs by itself between {a} and {b}: small differences add up"


def _errors(
    model: nn.Module, graph: onnx.ModelProto, feeds: Sequence[Feed], a: str, b: str
) -> list[tuple[str, str, float]]:
    """(module, tensor, largest relative RMS difference over the feeds), in the order of the graph.

    Against torch, every torch module is given what onnxruntime computed before it, so that each error is its own.
    """
    tensors = _module_tensors(model, graph)
    opened = _opened(graph, tensors.values())
    runners = {way: session(opened, optimize=way == "ort_optimized") for way in (a, b) if way != "torch"}
    worst: dict[str, float] = {}
    for feed in feeds if tensors else ():
        inputs = {value.name: feed[value.name] for value in graph.graph.input}
        values = {
            way: dict(zip(tensors, r.run(list(tensors.values()), inputs), strict=True)) for way, r in runners.items()
        }
        if a == "torch":
            with _forced(model, values[b], inputs.get("attention_mask", np.empty(0)) != 0) as found:
                _torch(model, feed, graph)
        else:
            found = {name: _relative(values[a][name], values[b][name]) for name in tensors}
        for name, error in found.items():
            worst[name] = max(worst.get(name, 0.0), error) if np.isfinite(error) else np.inf
    return [(name, tensor, worst[name]) for name, tensor in tensors.items() if name in worst]


def _module_tensors(model: nn.Module, graph: onnx.ModelProto) -> dict[str, str]:
    """Module path -> name of its output in the graph, in the order of the graph; ``path#2`` for its second call.

    Only modules with parameters of their own (linear, normalization, embedding), not the quantizers inside them.
    """
    every = {name for name, _ in model.named_modules(remove_duplicate=False)}
    modules = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    modules = {name for name in modules if "_quant" not in name}
    last: dict[str, tuple[int, str]] = {}
    for index, node in enumerate(graph.graph.node):
        scopes = node.name.strip("/").split("/")
        for end in range(1, len(scopes)):
            call = located("/".join(scopes[: end + 1]), every)
            if node.op_type == "QuantizeLinear" and "output_quant" in scopes:
                last.pop(call, None)  # what it returns stands behind the DequantizeLinear, unless that moved on
            if module_path(call) in modules and node.op_type not in MOVES and "input_quant" not in scopes:
                last[call] = (index, node.output[0])
    return {name: tensor for name, (_, tensor) in sorted(last.items(), key=lambda item: item[1])}


@contextmanager
def _forced(model: nn.Module, values: dict[str, Array], valid: Array) -> Iterator[dict[str, float]]:
    """Put ``values`` in the place of what the named calls return, and collect by how much they would have departed.

    The graph may hold the first token of a sequence only; the others stay torch's. A call whose output has another
    shape is left alone. Padding, where ``valid`` (batch, sequence) is False, is not compared: nothing reads it, and
    with a window of attention its tokens see masked ones alone, where the graph's milder mask gives other numbers.
    """
    errors: dict[str, float] = {}
    calls: Counter[str] = Counter()

    def force(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> Any:
            output, *others = result if isinstance(result, tuple) else (result,)  # an LSTM returns its last states too
            calls[name] += 1
            call = name if calls[name] == 1 else f"{name}#{calls[name]}"
            if call not in values:
                return result
            value = torch.from_numpy(np.array(values[call])).to(output)
            if (
                value.ndim == output.ndim - 1 and len(value) % len(output) == 0
            ):  # the tokens of all rows in one dimension
                value = value.reshape(len(output), -1, *value.shape[1:])
            if output.ndim != value.ndim or any(
                small > size for small, size in zip(value.shape, output.shape, strict=True)
            ):
                return result
            place = tuple(slice(0, size) for size in value.shape)
            read = valid if value.ndim == 3 and value.shape[:2] == valid.shape else ...
            errors[call] = _relative(*(t.float().cpu().numpy()[read] for t in (output[place], value)))
            forced = output.clone()
            forced[place] = value
            return (forced, *others) if others else forced

        return hook

    names = dict.fromkeys(map(module_path, values))
    handles = [model.get_submodule(name).register_forward_hook(force(name)) for name in names]
    try:
        yield errors
    finally:
        for handle in handles:
            handle.remove()


def _relative(one: Array, other: Array) -> float:
    """RMS of the difference over RMS of the larger."""
    one, other = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    with np.errstate(invalid="ignore", over="ignore"):
        scale = max(float(np.sqrt(np.square(one).mean())), float(np.sqrt(np.square(other).mean())), 1e-30)
        return float(np.sqrt(np.square(one - other).mean())) / scale
