"""Where the teacher's signal comes from: what ``Distill.source`` may be, and how several teachers answer as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Average", "Combine", "Live", "Mutual", "Select", "Source", "Stored"]


@dataclass(frozen=True)
class Stored:
    """The teacher answers once, into the label store.

    With ``top`` below the number of classes, only so many logits of an example are kept, and the probability of all
    others together, which they share alike when it is read: for large label sets.
    """

    top: int | None = None


@dataclass(frozen=True)
class Live:
    """The teacher answers in every step, beside the student: for signals too large to store."""


@dataclass(frozen=True)
class Average:
    """A moving average of the student is its teacher (mean teacher, Tarvainen and Valpola 2017)."""

    decay: float = 0.999


@dataclass(frozen=True)
class Mutual:
    """Students of one kind and several seeds teach each other (deep mutual learning, Zhang et al. 2018).

    All take a step at once, where the paper takes turns, and the norm that is clipped is that of all their gradients.
    With ``teacher`` the teacher is one of them and keeps learning, from the labels and the students' answers, by
    AdamW's ``teacher_rate`` in the place of the students' own rate. Under quantization the first student learns on
    beside all others, which stay in float.
    """

    students: int = 2
    teacher: bool = False
    teacher_rate: float = 5e-5


Source = Stored | Live | Average | Mutual
STORED = Stored()


@dataclass(frozen=True)
class Combine:
    """The answers of several teachers as one: the mean of their probabilities, and how much each counts in it.

    ``mean``: all alike. ``weights``: by ``weights``, one a teacher, the target's ``teacher`` first. ``confidence``: in
    each example by how far the answer's entropy is below the largest possible, which needs no label (after Kwon et al.
    2020). ``agreement``: in each example only those count, all alike, whose top answer is the most frequent one; of
    several as frequent, the one that the earliest teacher gives. So where two disagree, the first stands alone.
    """

    method: Literal["mean", "weights", "confidence", "agreement"] = "mean"
    weights: tuple[float, ...] = ()


MEAN = Combine()


@dataclass(frozen=True)
class Select:
    """Teach on ``share`` of the examples alone (training split and transfer set), chosen by the teacher's answers.

    ``entropy`` and ``margin`` take those it is least sure of, ``gap`` those on which the student is farthest from it
    before it is taught, each of these the same share of the examples of every answer; ``diversity`` takes those that
    leave no other far away (k-center on the teacher's mean states).
    """

    method: Literal["random", "entropy", "margin", "gap", "diversity"]
    share: float = 0.5
