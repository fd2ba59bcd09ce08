"""Which teacher signals a target's losses need; no torch here, since ``plan`` asks too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekd import shape, spec
from edgekd.errors import TargetError
from edgekd.spec.losses import Pairs

Layers = str | Sequence[tuple[int, int]]

HIDDEN = (spec.HiddenMSE, spec.HiddenCosine, spec.EmbeddingMSE, spec.AttentionTransfer)
ATTENTION = (spec.AttentionMaps, spec.Relations)
POOLED = (spec.RKD, spec.SimilarityPreserving, spec.CorrelationCongruence)
"""Losses by what they look at besides the logits."""
EXITS = (*shape.BERTS, "distilbert")
"""The families whose students can have early exits."""


@dataclass(frozen=True)
class Needs:
    """What to take from a model besides its logits: hidden states of layers (0: embeddings), queries, keys and values
    of blocks (from 1), and the mean of each example's last hidden states. A store keeps ``top`` logits, or all.
    """

    hidden: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    pooled: bool = False
    top: int | None = None

    @property
    def tokens(self) -> bool:
        """Whether any of it belongs to tokens."""
        return bool(self.hidden or self.attention)

    def __or__(self, other: Needs) -> Needs:
        """What either names."""
        hidden, attention = {*self.hidden, *other.hidden}, {*self.attention, *other.attention}
        return Needs(tuple(sorted(hidden)), tuple(sorted(attention)), self.pooled or other.pooled, self.top)


LOGITS = Needs()
"""Nothing else."""

VALIDATION = "validation"
"""What ``taps`` hold where validation, too, is asked for all of it, so that the losses themselves can judge there."""


def layer_map(layers: Layers, student_layers: int, teacher_layers: int) -> Pairs:
    """(student layer, teacher layer) pairs; 0 is the embedding output, n the output of block n.

    With S and T blocks: ``"uniform"`` pairs s -> round(s·T/S); ``"skip"`` s -> s·(T // S);
    ``"last"`` s -> T - S + s; ``"final"`` only S -> T; ``"learned"`` every block with every block. Raises
    ``TargetError`` for an explicit pair outside either model, and where S > T leaves a map without its blocks.
    """
    s_last, t_last = student_layers, teacher_layers
    if isinstance(layers, str):
        if layers in ("uniform", "skip", "last") and s_last > t_last:
            raise TargetError(
                f'layers="{layers}" cannot pair {s_last} layers with the teacher\'s {t_last}, since each of those may '
                "be paired once; give explicit (student, teacher) pairs"
            )
        blocks = range(1, s_last + 1)
        if layers == "uniform":
            return tuple((s, round(s * t_last / s_last)) for s in blocks)
        if layers == "skip":
            return tuple((s, s * (t_last // s_last)) for s in blocks)
        if layers == "last":
            return tuple((s, t_last - s_last + s) for s in blocks)
        if layers == "final":
            return ((s_last, t_last),)
        return tuple((s, t) for s in blocks for t in range(1, t_last + 1))
    for s, t in layers:
        if not (0 <= s <= s_last and 0 <= t <= t_last):
            raise TargetError(
                f"layer map pair ({s}, {t}) is out of range: the student has layers 0..{s_last}, the teacher "
                f"0..{t_last} (0 is the embedding output)"
            )
    return tuple((int(s), int(t)) for s, t in layers)


def pairs(loss: spec.Loss, student_layers: int, teacher_layers: int) -> Pairs:
    """The pairs of layers that a loss compares; none if it looks at no layer. Raises as ``layer_map`` does."""
    if isinstance(loss, spec.EmbeddingMSE):
        return ((0, 0),)
    if not isinstance(loss, HIDDEN + ATTENTION):
        return ()
    try:
        found = layer_map(loss.layers, student_layers, teacher_layers)
    except TargetError as error:
        raise TargetError(f"distill.losses: {type(loss).__name__}: {error}") from None
    if isinstance(loss, ATTENTION) and any(0 in pair for pair in found):
        raise TargetError(f"distill.losses: {type(loss).__name__}: layer 0, the embeddings, has no attention")
    return found


def needs(losses: Sequence[spec.Loss], student_layers: int, teacher_layers: int, of: int) -> Needs:
    """What ``losses`` need of the student (``of`` 0) or of the teacher (1). Raises as ``pairs`` does."""
    hidden: set[int] = set()
    attention: set[int] = set()
    for loss in losses:
        if isinstance(loss, spec.Exits) and of == 0:
            hidden.update((*loss.at, student_layers))
        layers = {pair[of] for pair in pairs(loss, student_layers, teacher_layers)}
        (attention if isinstance(loss, ATTENTION) else hidden).update(layers)
    pooled = any(isinstance(loss, POOLED) for loss in losses)
    return Needs(tuple(sorted(hidden)), tuple(sorted(attention)), pooled)


def check_exits(losses: Sequence[spec.Loss], family: object, layers: int | None) -> None:
    """Raise ``TargetError`` for exits that a student of that family and that many blocks, where known, cannot have."""
    for at in (loss.at for loss in losses if isinstance(loss, spec.Exits)):
        if family not in EXITS:
            raise TargetError(f"distill.losses: Exits knows {', '.join(EXITS)} students, not {family!r}: leave it out")
        if layers is not None and not 1 <= min(at) <= max(at) < layers:
            raise TargetError(
                f"distill.losses: Exits(at={at}): the student has {layers} blocks, and its own head after the last; "
                "name blocks from 1 on that stand before it"
            )


def check(
    distill: spec.Distill,
    student_layers: int | None,
    teacher_layers: int | None,
    student_width: int | None = None,
    teacher_width: int | None = None,
) -> None:
    """Raise ``TargetError`` for a pair of layers outside either model, and for relation heads that do not divide either
    width; ``None`` stands for a number not known yet.
    """
    if student_layers is not None and teacher_layers is not None:
        needs(distill.losses, student_layers, teacher_layers, 1)
    for loss in distill.losses:
        check_heads(loss, "student", student_width)
        check_heads(loss, "teacher", teacher_width)


def by_itself(source: spec.Source) -> bool:
    """Whether hidden states and attention are those of the student, or of others of its kind; a teacher that learns
    among several students gives answers alone.
    """
    return isinstance(source, spec.Average) or (isinstance(source, spec.Mutual) and source.students > 1)


def check_heads(loss: spec.Loss, who: str, width: int | None) -> None:
    """Raise ``TargetError`` for a loss whose relation heads do not divide a model's ``width``."""
    if isinstance(loss, spec.Relations) and width is not None and width % loss.heads:
        raise TargetError(
            f"distill.losses: Relations(heads={loss.heads}) does not divide the {width} channels of the {who}"
        )


def inside(losses: Sequence[spec.Loss], layers: int) -> Needs:
    """All that ``losses`` could ask of a model with so many layers, whichever these are paired with."""
    hidden, attention = (any(isinstance(loss, kinds) for loss in losses) for kinds in (HIDDEN, ATTENTION))
    pooled = any(isinstance(loss, POOLED) for loss in losses)
    return Needs(tuple(range(layers + 1)) * hidden, tuple(range(1, layers + 1)) * attention, pooled)


def taps(distill: spec.Distill, student: spec.Student) -> tuple[str, ...]:
    """What the label store must hold, as the ``labels`` stage is told it: ``logits`` always, then each map of layers.

    ``hidden:uniform/4`` leaves the teacher's layer count open, so that this is known before the teacher is; a student
    whose count is not known either takes all. Nothing, where the signal comes from somebody else.
    """
    if not isinstance(distill.source, spec.Stored):
        return ()
    count = student.layers if isinstance(student.layers, int) else len(student.layers or ())
    count = count or _config_layers(student)
    logits = "logits" if distill.source.top is None else f"logits:{distill.source.top}"
    wanted = {"pooled"} if distill.select is not None and distill.select.method == "diversity" else set()
    for loss in distill.losses:
        if isinstance(loss, POOLED):
            wanted.add("pooled")
        if isinstance(loss, HIDDEN + ATTENTION):
            kind = "attention" if isinstance(loss, ATTENTION) else "hidden"
            layers: Layers = ((0, 0),) if isinstance(loss, spec.EmbeddingMSE) else loss.layers
            if isinstance(layers, str):
                wanted.add(f"{kind}:{layers}/{count}" if count or layers == "final" else f"{kind}:all")
            else:
                wanted.add(f"{kind}:" + ",".join(str(t) for t in sorted({t for _, t in layers})))
    return (logits, *sorted(wanted))


def stored(wanted: Sequence[str], teacher_layers: int, classes: int) -> Needs:
    """What ``taps`` names, once it is known how many layers and classes the teacher has.

    Raises ``TargetError`` for a layer too many.
    """
    found: dict[str, set[int]] = {"hidden": set(), "attention": set()}
    top = next((int(tap.partition(":")[2]) for tap in wanted if tap.startswith("logits:")), None)
    for kind, _, what in (tap.partition(":") for tap in wanted):
        if kind not in found:
            continue
        first = 0 if kind == "hidden" else 1
        if what == "all":
            layers = set(range(teacher_layers + 1))
        elif "/" in what:
            name, count = what.split("/")
            layers = {t for _, t in layer_map(name, int(count) or 1, teacher_layers)}
        else:
            layers = {int(t) for t in what.split(",")}
        for layer in layers:
            if not 0 <= layer <= teacher_layers:
                raise TargetError(
                    f"distill.losses: a loss asks for layer {layer} of the teacher, which has layers "
                    f"0..{teacher_layers} (0 is the embedding output)"
                )
        found[kind] |= {layer for layer in layers if layer >= first}
    top = top if top is not None and top < classes else None
    return Needs(tuple(sorted(found["hidden"])), tuple(sorted(found["attention"])), "pooled" in wanted, top)


def store_bytes(needs: Needs, examples: int, tokens: int, classes: int, hidden: int) -> int:
    """Bytes that a label store takes: float32 logits and pooled states, float16 states of tokens with their positions.

    An upper bound where keys and values are narrower than the ``hidden`` channels.
    """
    logits = 4 * classes if needs.top is None else 8 * needs.top + 4
    per_example = logits + 8 + 4 * hidden * needs.pooled
    per_token = 2 * hidden * (len(needs.hidden) + 3 * len(needs.attention)) + 4 * needs.tokens
    return examples * per_example + tokens * per_token


def _config_layers(student: spec.Student) -> int:
    config = student.config or {}
    return int(str(config.get("num_hidden_layers") or config.get("n_layers") or 0))
