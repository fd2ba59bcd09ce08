"""What the fields of a target may hold, by themselves (types by annotation, numbers by ``RANGES``) and together.

Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from edgekd.spec import Target

Range = Mapping[str, float]

POSITIVE: Range = {"above": 0}
NOT_NEGATIVE: Range = {"at least": 0}
COUNT: Range = {"at least": 1}
SHARE: Range = {"at least": 0, "at most": 1}
DROPOUT: Range = {"at least": 0, "below": 1}

RANGES: dict[str, Range] = {
    "TextClassification.test_fraction": {"above": 0, "below": 1},
    "TextClassification.validation_fraction": {"above": 0, "below": 1},
    "TextClassification.max_length": {"at least": 8},
    "TextClassification.transfer_words": {"at least": 8},
    "TextClassification.limit": COUNT,
    "Optimizer.learning_rate": POSITIVE,
    "Optimizer.weight_decay": NOT_NEGATIVE,
    "Optimizer.warmup_fraction": SHARE,
    "Optimizer.clip_norm": POSITIVE,
    "Optimizer.batch_size": COUNT,
    "Optimizer.micro_batch_size": COUNT,
    "BlackBox.top_logprobs": {"at least": 1, "at most": 20},
    "BlackBox.max_unlabelled": SHARE,
    "BlackBox.concurrency": {"at least": 1, "at most": 256},
    "BlackBox.timeout_s": POSITIVE,
    "BlackBox.retries": {"at least": 0, "at most": 20},
    "BlackBox.max_requests": COUNT,
    "BlackBox.max_cost": POSITIVE,
    "BlackBox.input_price": NOT_NEGATIVE,
    "BlackBox.output_price": NOT_NEGATIVE,
    "Finetune.dropout": DROPOUT,
    "Finetune.rank": COUNT,
    "Finetune.alpha": POSITIVE,
    "Student.layers": COUNT,
    "Student.layers[]": NOT_NEGATIVE,
    "Student.hidden": COUNT,
    "Student.heads": COUNT,
    "Student.ffn": COUNT,
    "Student.vocabulary": COUNT,
    "Student.max_length": {"at least": 8},
    "Student.positions": COUNT,
    "Ramp.start": NOT_NEGATIVE,
    "Ramp.end": NOT_NEGATIVE,
    "Ramp.begin": SHARE,
    "Ramp.until": SHARE,
    "*.dropout": DROPOUT,
    "*.weight": NOT_NEGATIVE,
    "*.temperature": POSITIVE,
    "*.layers[]": NOT_NEGATIVE,
    "*.group": {"at least": 2},
    "CE.smoothing": {"at least": 0, "below": 1},
    "DKD.target": NOT_NEGATIVE,
    "DKD.others": NOT_NEGATIVE,
    "DIST.inter": NOT_NEGATIVE,
    "DIST.intra": NOT_NEGATIVE,
    "Relations.heads": COUNT,
    "Exits.at[]": COUNT,
    "Exits.labels": NOT_NEGATIVE,
    "Exits.answers": NOT_NEGATIVE,
    "Exits.hidden": NOT_NEGATIVE,
    "RKD.distance": NOT_NEGATIVE,
    "RKD.angle": NOT_NEGATIVE,
    "CorrelationCongruence.gamma": POSITIVE,
    "CorrelationCongruence.order": COUNT,
    "*.epochs": POSITIVE,
    "Distill.generations": COUNT,
    "Distill.exit": COUNT,
    "Augment.copies": COUNT,
    "Augment.mask": SHARE,
    "Augment.replace": SHARE,
    "Augment.neighbours": COUNT,
    "Stored.top": COUNT,
    "Combine.weights[]": POSITIVE,
    "Select.share": {"above": 0, "at most": 1},
    "Average.decay": {"at least": 0, "below": 1},
    "Mutual.students": COUNT,
    "Mutual.teacher_rate": POSITIVE,
    "Quant.percentile": {"above": 0, "at most": 100},
    "Quant.frozen_fraction": SHARE,
    "Quant.weights_first": {"at least": 0, "below": 1},
    "Export.opset": {"at least": 17, "at most": 20},
    "Export.parity_examples": COUNT,
    "Export.min_agreement": SHARE,
    "Export.max_score_gap": SHARE,
    "Device.cores": COUNT,
    "Device.memory_mib": COUNT,
    "Bench.threads[]": COUNT,
    "Bench.rounds": COUNT,
    "Bench.calls": COUNT,
    "Budget.p50_ms": POSITIVE,
    "Budget.p90_ms": POSITIVE,
    "Budget.size_mib": POSITIVE,
    "Budget.peak_rss_mib": POSITIVE,
    "Budget.score_kept": {"above": 0, "at most": 1.5},  # a share: a percentage would never be met
    "Budget.speedup": POSITIVE,
    "Budget.shrink": POSITIVE,
    "Target.seed": {"at least": 0, "below": 2**63},
}
"""``Class.field``: what its number must be (``*``: of any class). ``Class.field[]``: what each in its tuple must be."""

NOT_EMPTY = ("*.layers", "Relations.of", "Exits.at", "*.losses", "Bench.runtimes", "Bench.threads")

_COMPARE = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}
_NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    bool: "True or False",
    NoneType: "None",
    dict: "a dict",
    object: "JSON data",
}


def problems(value: object, path: str = "") -> Iterator[str]:
    """What is wrong with the fields of a dataclass and of those inside it, each named by its path from the first."""
    kind = type(value)
    for name, wanted in get_type_hints(kind).items():
        place = f"{path}.{name}" if path else name
        yield from _wrong(getattr(value, name), wanted, place, f"{kind.__name__}.{name}")


def contradictions(target: Target, known: Sequence[str]) -> Iterator[str]:
    """What in a target contradicts something else in it; ``known`` are the runtimes that there are."""
    task, student, quant = target.task, target.student, target.quant
    if not target.name.isidentifier():
        yield f"name must be a Python identifier, as the file that holds it: {target.name!r}"
    positions = student.positions or student.reading(task).max_length
    if quant.static and not quant.calibration:
        yield "quant.calibration must name a list in calibration/ (ids of the training split)"
    if target.export.graph == "requantized" and not quant.static:
        yield "export.graph 'requantized' gives outputs fixed ranges, and quant.scheme has none: choose a static scheme"
    if target.export.graph == "sequence" and quant.scheme == "w4_block":
        yield "export.graph 'sequence' is about products in int8, and w4_block has none: remove it"
    departs = (quant.weights_first, quant.scales != "statistics", quant.weight_bits, quant.activation_bits)
    if "w4_block" in quant.schemes and not quant.per_channel:
        yield "w4_block has a scale for every block: quant.per_channel does not apply"
    if not quant.static and any(departs):
        yield (
            f"{quant.scheme} has no ranges to learn, to bring in later or to cut: weights_first, scales, weight_bits "
            "and activation_bits are for static schemes"
        )
    if "u8s7_static" in quant.schemes and quant.weight_bits == 8:
        yield "u8s7_static has 7-bit weights, so that sums stay in 16 bits: quant.weight_bits 8 would undo that"
    if quant.train == "if_needed" and target.budget.score_kept is None:
        yield "quant.train 'if_needed' trains where PTQ keeps less than budget.score_kept: set it, or train 'always'"
    expected = target.device.schemes
    for scheme in quant.schemes:
        if scheme not in expected:
            yield f"scheme {scheme} does not suit {target.device.name}: use {' or '.join(expected)}"
    if "s8s8_static" in quant.schemes and any(scheme.startswith("u8") for scheme in quant.schemes):
        yield (
            f"{' and '.join(quant.schemes)}: no runtime is set for signed and unsigned activations at once; leave the "
            "former, or the latter, out of quant.scheme and quant.mixed"
        )
    cores, threads = target.device.cores, max(target.bench.threads)
    if cores is not None and threads > cores:
        yield f"bench.threads {threads}: {target.device.name} has {cores} cores; give fewer, or a Device of your own"
    runtimes = (*target.bench.runtimes, *target.bench.workloads)
    if "w4_block" in quant.schemes and (others := [name for name in runtimes if name.startswith("openvino")]):
        yield f"w4_block runs in ort_cpu alone: remove {others[0]} from bench.runtimes and bench.workloads"
    unknown = [name for name in runtimes if name not in known]
    if unknown:
        yield f"unknown runtime {unknown[0]!r}: there are {', '.join(known)}"
    for workload in sorted({w for names in target.bench.workloads.values() for w in names}):
        if not re.fullmatch(r"real|fixed[1-9][0-9]{0,5}", workload):
            yield f"unknown workload {workload!r}: use 'real' or 'fixed<tokens>'"
        elif workload != "real" and int(workload[5:]) > positions:
            yield f"workload {workload} is longer than the student's {positions} positions: raise student.positions"


def _wrong(value: Any, wanted: Any, place: str, rule: str) -> Iterator[str]:
    """``wanted`` is an annotation, ``rule`` the entry in the tables."""
    options = _options(wanted)
    fitting = [option for option in options if _is_a(value, option)]
    if not fitting:
        yield f"{place} must be {_words(options)}, not {value!r}{_hint(value, options)}"
        return
    inside, kind = get_args(fitting[0]), get_origin(fitting[0]) or fitting[0]
    if dataclasses.is_dataclass(kind):
        yield from problems(value, place)
    elif kind is tuple:
        if not value and {rule, _any(rule)} & {*NOT_EMPTY}:
            yield f"{place} is empty: give one at least"
        for i, item in enumerate(value):
            part = inside[0] if inside[-1] is Ellipsis else inside[i]
            yield from _wrong(item, part, f"{place}[{i}]", rule.removesuffix("[]") + "[]")
    elif kind is dict:
        for name, item in value.items():
            yield from _wrong(name, inside[0], f"a key of {place}", "")
            yield from _wrong(item, inside[1], f"{place}[{name!r}]", rule)
    elif kind in (int, float):
        bounds = RANGES.get(rule) or RANGES.get(_any(rule), {})
        if not all(_COMPARE[word](value, bound) for word, bound in bounds.items()):
            yield f"{place} must be {' and '.join(f'{word} {bound}' for word, bound in bounds.items())}, not {value}"


def _any(rule: str) -> str:
    """The entry for a field of that name in any class."""
    return f"*.{rule.partition('.')[2]}"


def _options(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)


def _is_a(value: Any, option: Any) -> bool:
    """Whether ``value`` is of that kind, not looking inside it."""
    kind, inside = get_origin(option) or option, get_args(option)
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inside)
    if kind is tuple:
        return isinstance(value, tuple) and (inside[-1] is Ellipsis or len(value) == len(inside))
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind) and (kind is not object or _is_json(value))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _words(options: tuple[Any, ...]) -> str:
    said = [_name(option) for option in options]
    return " or ".join(filter(None, (", ".join(said[:-1]), said[-1])))


def _name(option: Any) -> str:
    kind, inside = get_origin(option) or option, get_args(option)
    if kind is Literal:
        return f"one of {', '.join(map(str, inside))}" if len(inside) > 1 else repr(inside[0])
    if kind is tuple:
        return "a tuple" if inside[-1] is Ellipsis else f"a tuple of {len(inside)}"
    return _NAMES.get(kind) or kind.__name__


def _hint(value: Any, options: tuple[Any, ...]) -> str:
    """One item where a tuple of such items is wanted has lost its comma."""
    items = [get_args(option)[0] for option in options if get_origin(option) is tuple and ... in get_args(option)]
    comma = any(_is_a(value, o) for item in items for o in _options(item))
    return f"; write ({value!r},)" if comma else ""
