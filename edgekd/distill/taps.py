"""Which teacher signals a target's losses need; no torch here, since ``plan`` asks too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgekd import spec
from edgekd.errors import TargetError

Layers = Literal["uniform"] | Sequence[tuple[int, int]]


def layer_map(layers: Layers, student_layers: int, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer) pairs; 0 is the embedding output, n the output of block n.

    ``"uniform"`` pairs both embeddings and spreads the student's blocks over the teacher's: s -> round(s·T/S).
    Raises ``TargetError`` for an explicit pair outside either model, and for a student deeper than its teacher.
    """
    if layers == "uniform":
        if student_layers > teacher_layers:
            raise TargetError(
                f'HiddenMSE: "uniform" cannot pair {student_layers} layers with the teacher\'s {teacher_layers}, since '
                "each of those may be paired once; give explicit (student, teacher) pairs"
            )
        return tuple((s, round(s * teacher_layers / student_layers)) for s in range(student_layers + 1))
    for s, t in layers:
        if not (0 <= s <= student_layers and 0 <= t <= teacher_layers):
            raise TargetError(
                f"layer map pair ({s}, {t}) is out of range: the student has layers 0..{student_layers}, "
                f"the teacher 0..{teacher_layers} (0 is the embedding output)"
            )
    if len({t for _, t in layers}) != len(layers):
        raise TargetError("layer map: each teacher layer may appear once")
    return tuple((int(s), int(t)) for s, t in layers)


def check(distill: spec.Distill, student_layers: int | None, teacher_layers: int | None) -> None:
    """Raise ``TargetError`` for a hidden-state pair outside either model; ``None`` stands for a count not known yet."""
    for loss in distill.losses:
        if isinstance(loss, spec.HiddenMSE) and student_layers is not None and teacher_layers is not None:
            layer_map(loss.layers, student_layers, teacher_layers)


def taps(distill: spec.Distill, student: spec.Student) -> tuple[str, ...]:
    """What the label store must hold: ``logits`` always, ``hidden:<layers>`` if a loss needs hidden states.

    ``hidden:uniform/4`` leaves the teacher's layer count open, so that this is known before the teacher is.
    """
    wanted = ["logits"]
    for loss in distill.losses:
        if isinstance(loss, spec.HiddenMSE):
            if loss.layers == "uniform":
                count = student.layers if isinstance(student.layers, int) else len(student.layers or ())
                count = count or _config_layers(student)
                wanted.append(f"hidden:uniform/{count}" if count else "hidden:all")
            else:
                wanted.append("hidden:" + ",".join(str(t) for _, t in loss.layers))
    if len(wanted) > 2:
        raise TargetError("distill.losses: at most one HiddenMSE, with all its layer pairs in one map")
    return tuple(wanted)


def hidden_layers(wanted: Sequence[str], teacher_layers: int) -> tuple[int, ...]:
    """The teacher layers that ``taps`` names, once it is known how many it has; ``TargetError`` for one too many."""
    for tap in wanted:
        if tap.startswith("hidden:"):
            what = tap.removeprefix("hidden:")
            if what == "all":
                return tuple(range(teacher_layers + 1))
            if what.startswith("uniform/"):
                pairs = layer_map("uniform", int(what.removeprefix("uniform/")), teacher_layers)
                return tuple(sorted({t for _, t in pairs}))
            layers = tuple(sorted(int(t) for t in what.split(",")))
            for layer in layers:
                if not 0 <= layer <= teacher_layers:
                    raise TargetError(
                        f"distill.losses: HiddenMSE asks for layer {layer} of the teacher, which has layers "
                        f"0..{teacher_layers} (0 is the embedding output)"
                    )
            return layers
    return ()


def _config_layers(student: spec.Student) -> int:
    config = student.config or {}
    return int(str(config.get("num_hidden_layers") or config.get("n_layers") or 0))
