"""What a student learns from beside the task's own texts: changed copies of these, and the backbone before the task."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.spec import losses as ls
from edgekd.spec.training import Optimizer

__all__ = ["Augment", "General", "InnerLoss"]

InnerLoss = (
    ls.HiddenMSE | ls.HiddenCosine | ls.EmbeddingMSE | ls.AttentionTransfer
    | ls.AttentionMaps | ls.Relations
    | ls.RKD | ls.SimilarityPreserving | ls.CorrelationCongruence
)  # fmt: skip
"""Losses that look at no answers."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Up to ``copies`` changed copies of every training text, for the teacher to label (TinyBERT, Jiao et al. 2020).

    In each copy a word becomes the tokenizer's mask token with probability ``mask`` (Tang et al. 2019; the unknown
    token where there is no mask), and with probability ``replace`` one of its ``neighbours`` nearest others: by the
    cosine of the teacher's word embeddings, among the words of the training texts that are one token. TinyBERT asks
    GloVe for words of several pieces and BERT's own predictions for the others; here those of several stay as they are.
    """

    copies: int = 1
    mask: float = 0.1
    replace: float = 0.3
    neighbours: int = 15


@dataclass(frozen=True, kw_only=True)
class General:
    """Before the task, the student learns from the teacher's backbone as it came, which knows nothing of the task.

    General distillation (TinyBERT, 2020; MiniLM, 2020): cut from that backbone, under ``losses`` that look at no
    answers; its weights, those with the least loss on validation texts, then begin the task's distillation. The head
    is fresh, as that of a teacher before it is fine-tuned. ``text`` locates unlabelled text, read as the task's
    ``transfer`` is and taught behind the training texts; ``None``: the training texts and the task's transfer set.
    """

    losses: tuple[InnerLoss, ...] = (ls.Relations(),)
    text: str | None = None
    epochs: float = 3
    optimizer: Optimizer = Optimizer()
