"""The ways to teach that ``distillation.py`` compares: each is plain KL but for what it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgekd import spec


@dataclass(frozen=True)
class Recipe:
    """One way to teach: its losses, the fields of ``Distill`` and of the task that differ, and assistants' shapes."""

    losses: tuple[spec.Loss, ...] = (spec.KL(),)
    distill: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    assistants: tuple[dict[str, Any], ...] = ()


def beside(loss: spec.Loss) -> Recipe:
    """KL, and another loss beside it."""
    return Recipe((spec.KL(), loss))


def chosen(method: Any) -> Recipe:
    """Plain KL on half of the examples."""
    return Recipe(distill={"select": spec.Select(method)})


BASELINES = {"fine-tuning": Recipe((spec.CE(),)), "KL": Recipe()}
ANSWERS = {
    "fine-tuning, smoothed labels": Recipe((spec.CE(smoothing=0.1),)),
    "teacher's labels": Recipe((spec.CE(labels="teacher"),)),
    "KL at 2": Recipe((spec.KL(temperature=2.0),)),
    "KL at 4": Recipe((spec.KL(temperature=4.0),)),
    "KL, temperature learned": Recipe((spec.KL(temperature="learned"),)),
    "KL + labels": beside(spec.CE()),
    "reverse KL": Recipe((spec.ReverseKL(),)),
    "Jensen-Shannon": Recipe((spec.JS(),)),
    "MSE on logits": Recipe((spec.LogitMSE(),)),
    "decoupled KD": Recipe((spec.DKD(),)),
    "DIST": Recipe((spec.DIST(),)),
    "KL + DIST": beside(spec.DIST()),
}
STATES = {
    "KL + hidden MSE": beside(spec.HiddenMSE(0.1)),
    "KL + hidden MSE, layers learned": beside(spec.HiddenMSE(0.1, layers="learned")),
    "KL + hidden MSE, balanced": Recipe((spec.KL(), spec.HiddenMSE(0.1)), {"balance": "gradients"}),
    "KL + hidden cosine": beside(spec.HiddenCosine(0.1)),
    "KL + embedding MSE": beside(spec.EmbeddingMSE(0.1)),
    "KL + attention transfer": beside(spec.AttentionTransfer(0.1)),
    "KL + attention maps": beside(spec.AttentionMaps(0.1)),
    "KL + relations of attention": beside(spec.Relations(heads=2)),
    "KL + DIST + relations": Recipe((spec.KL(), spec.DIST(), spec.Relations(heads=2))),
    "KL + RKD": beside(spec.RKD()),
    "KL + relations + RKD": Recipe((spec.KL(), spec.Relations(heads=2), spec.RKD())),
    "KL + similarity": beside(spec.SimilarityPreserving(0.1)),
    "KL + correlation": beside(spec.CorrelationCongruence(10.0)),
}
REGIMES = {
    "average of the student": Recipe((spec.KL(), spec.CE()), {"source": spec.Average(0.99)}),
    "two students": Recipe((spec.KL(), spec.CE()), {"source": spec.Mutual(2)}),
    "the teacher learns on": Recipe((spec.KL(), spec.CE()), {"source": spec.Mutual(students=1, teacher=True)}),
    "KL + an early exit": beside(spec.Exits(at=(1,))),
    "born again": Recipe(distill={"generations": 2}),
    "an assistant of 4x128": Recipe(assistants=({"layers": 4, "hidden": 128, "heads": 4, "ffn": 512},)),
}
EXAMPLES = {
    **{f"half, by {method}": chosen(method) for method in ("random", "entropy", "margin", "gap", "diversity")},
    "windows of the documents as well": Recipe(task={"transfer_words": 50}),
    "changed copies as well": Recipe(distill={"augment": spec.Augment()}),
    "the backbone first": Recipe(distill={"general": spec.General()}),
}
RECIPES = BASELINES | ANSWERS | STATES | REGIMES | EXAMPLES
SUBSET = (
    *BASELINES,
    "teacher's labels",
    "DIST",
    "KL + DIST",
    "KL + hidden MSE, layers learned",
    "KL + relations of attention",
    "KL + DIST + relations",
    "KL + RKD",
    "KL + relations + RKD",
    "KL + correlation",
    "average of the student",
    "an assistant of 4x128",
)
"""A member of each family, and the recipe that the targets have."""
MOST = tuple(label for label in RECIPES if label != "the teacher learns on")
"""All but that one, whose teacher's own steps take a quarter of an hour a student without a GPU."""
