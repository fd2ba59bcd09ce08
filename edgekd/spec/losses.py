"""The losses that a target may name, each with its own options. What they compute: ``edgekd.distill.losses``.

Every weight, and every temperature, may be a ``Ramp`` over the training instead of a number; under quantization it
stays where the training in fp32 left it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CE",
    "DIST",
    "DKD",
    "JS",
    "KL",
    "RKD",
    "AttentionMaps",
    "AttentionTransfer",
    "CorrelationCongruence",
    "EmbeddingMSE",
    "Exits",
    "HiddenCosine",
    "HiddenMSE",
    "LogitMSE",
    "Loss",
    "PartialKL",
    "Ramp",
    "Relations",
    "ReverseKL",
    "SimilarityPreserving",
]

Pairs = tuple[tuple[int, int], ...]
"""(student layer, teacher layer): 0 is the embedding output, n the output of the n-th block."""

Kind = Literal["qq", "kk", "vv"]


@dataclass(frozen=True)
class Ramp:
    """A number that goes from ``start`` to ``end`` between two shares of the training, and stays there."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"


# ---------------------------------------------------------------------------------------------- the answers themselves


@dataclass(frozen=True)
class KL:
    """KL divergence from teacher to student at ``temperature``, scaled by its square (Hinton et al. 2015).

    ``temperature="learned"`` trains it against the student, as a curriculum (CTKD, Li et al. 2023).
    """

    weight: float | Ramp = 1.0
    temperature: float | Ramp | Literal["learned"] = 1.0


@dataclass(frozen=True)
class PartialKL:
    """KL divergence from teacher to student where not all of the teacher's probabilities are known.

    Over the classes whose are, and all others as one: black boxes, and stores of the largest logits alone.
    """

    weight: float | Ramp = 1.0


@dataclass(frozen=True)
class ReverseKL:
    """KL divergence from student to teacher: the student settles on what the teacher is sure of (MiniLLM, 2024)."""

    weight: float | Ramp = 1.0
    temperature: float | Ramp = 1.0


@dataclass(frozen=True)
class JS:
    """Jensen-Shannon divergence: symmetric, and at temperature 1 never above ln 2 (Lin 1991)."""

    weight: float | Ramp = 1.0
    temperature: float | Ramp = 1.0


@dataclass(frozen=True)
class CE:
    """Cross-entropy on the labels of the data, or on the teacher's answers; ``smoothing`` mixes in all classes."""

    weight: float | Ramp = 1.0
    labels: Literal["data", "teacher"] = "data"
    smoothing: float = 0.0


@dataclass(frozen=True)
class LogitMSE:
    """Mean squared error on logits; ``centred`` first removes each example's mean, to which softmax is blind."""

    weight: float | Ramp = 1.0
    centred: bool = True


@dataclass(frozen=True)
class DKD:
    """Decoupled KD: what the teacher says of the right class, and of the others among themselves (Zhao et al. 2022).

    The right class is the data's label; of an example without one, the teacher's answer.
    """

    weight: float | Ramp = 1.0
    target: float = 1.0
    others: float = 8.0
    temperature: float | Ramp = 4.0


@dataclass(frozen=True)
class DIST:
    """Correlation instead of equality: of each example's probabilities, and of each class over ``group`` examples
    (Huang et al. 2022).
    """

    weight: float | Ramp = 1.0
    inter: float = 1.0
    intra: float = 1.0
    temperature: float | Ramp = 1.0
    group: int = 32


# -------------------------------------------------------------------------------------------------------- hidden states


@dataclass(frozen=True)
class HiddenMSE:
    """Mean squared error on hidden states through learned projections (FitNets, 2015; TinyBERT, 2020).

    ``layers``: ``"uniform"`` spreads the student's blocks over the teacher's; ``"skip"`` takes every n-th block of the
    teacher from the first on, ``"last"`` its last ones, ``"final"`` only the last of both; ``"learned"`` gives each
    block of the student a learned mixture of all of the teacher's; or explicit pairs, where 0 is the embeddings (which
    have a loss of their own, ``EmbeddingMSE``). Skip and last are the maps of PKD (2019), which compares normalised
    first tokens and leaves the student's last block out; here all tokens and blocks count.
    """

    weight: float | Ramp = 1.0
    layers: Literal["uniform", "skip", "last", "final", "learned"] | Pairs = "uniform"


@dataclass(frozen=True)
class HiddenCosine:
    """One minus the cosine between hidden states, through learned projections (DistilBERT, 2019)."""

    weight: float | Ramp = 1.0
    layers: Literal["uniform", "skip", "last", "final", "learned"] | Pairs = "final"


@dataclass(frozen=True)
class EmbeddingMSE:
    """Mean squared error on what the embedding layers give, through a learned projection (TinyBERT, 2020)."""

    weight: float | Ramp = 1.0


@dataclass(frozen=True)
class AttentionTransfer:
    """Where hidden states are large: the energy of each position, normalised (Zagoruyko and Komodakis 2017)."""

    weight: float | Ramp = 1.0
    layers: Literal["uniform", "skip", "last", "final"] | Pairs = "uniform"


# ------------------------------------------------------------------------------------------------------------ attention


@dataclass(frozen=True)
class AttentionMaps:
    """Each head's attention: mean squared error of its scores (TinyBERT, 2020), or KL of its weights.

    Where the numbers of heads differ, means over as many groups of heads as divide both are compared.
    """

    weight: float | Ramp = 1.0
    divergence: Literal["mse", "kl"] = "mse"
    layers: Literal["uniform", "skip", "last", "final"] | Pairs = "uniform"


@dataclass(frozen=True)
class Relations:
    """KL between the self-relations of queries, of keys and of values, in ``heads`` relation heads (MiniLMv2, 2021).

    Neither widths nor numbers of attention heads need be equal; ``heads`` must divide the widths of both models.
    """

    weight: float | Ramp = 1.0
    of: tuple[Kind, ...] = ("qq", "kk", "vv")
    heads: int = 4
    layers: Literal["uniform", "skip", "last", "final"] | Pairs = "final"


# ------------------------------------------------------------------------------------------- examples among each other


@dataclass(frozen=True)
class RKD:
    """Distances and angles between the examples of a group (relational KD, Park et al. 2019).

    An example is the mean of its last hidden states; widths may differ. Examples are compared within groups of
    ``group``, so that micro-batches of whole groups add up to the big batch; this holds for those below too.
    """

    weight: float | Ramp = 1.0
    distance: float = 1.0
    angle: float = 2.0
    group: int = 16


@dataclass(frozen=True)
class SimilarityPreserving:
    """Which examples of a group are alike: squared distance of normalised similarity matrices (Tung and Mori 2019)."""

    weight: float | Ramp = 1.0
    group: int = 32


@dataclass(frozen=True)
class CorrelationCongruence:
    """The same under a Gaussian kernel, by its Taylor series of ``order`` terms (Peng et al. 2019)."""

    weight: float | Ramp = 1.0
    gamma: float = 0.4
    order: int = 2
    group: int = 32


# -------------------------------------------------------------------------------------- the student's own deeper layers


@dataclass(frozen=True)
class Exits:
    """The student's deeper layers teach heads ``at`` its shallower ones (be your own teacher, Zhang et al. 2019).

    A head is like the student's own, reads the output of that block (1: the first), and starts fresh. Of each exit:
    ``labels`` weighs cross-entropy on the labels of the data, ``answers`` KL from the student's own answers at
    ``temperature``, ``hidden`` squared error on its last hidden states. One may be shipped (``Distill.exit``); the
    other heads are never quantized.
    """

    weight: float | Ramp = 1.0
    at: tuple[int, ...] = (1,)
    labels: float = 0.7
    answers: float = 0.3
    hidden: float = 0.03
    temperature: float | Ramp = 3.0


Loss = (
    KL | PartialKL | ReverseKL | JS | CE | LogitMSE | DKD | DIST
    | HiddenMSE | HiddenCosine | EmbeddingMSE | AttentionTransfer
    | AttentionMaps | Relations
    | RKD | SimilarityPreserving | CorrelationCongruence
    | Exits
)  # fmt: skip


def needs_no_teacher(loss: Loss) -> bool:
    """Whether a loss looks at the data's labels and at the student alone."""
    return isinstance(loss, Exits) or (isinstance(loss, CE) and loss.labels == "data")
