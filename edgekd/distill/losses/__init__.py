"""The losses: one function per dataclass of ``edgekd.spec``, ``(options, student, teacher, batch, own) -> scalar``.

Every loss is a sum over the micro-batch divided by the step's totals (see ``Batch``), computed in float32 whatever
the dtype of the signals; the teacher's signal never receives a gradient. ``own`` holds what a loss itself learns, or
the layers that it compares: see ``edgekd.distill.learner``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgekd import spec
from edgekd.distill.losses import attention, exits, feature, relation, response

LOSSES: dict[type, Callable[..., Tensor]] = {
    spec.KL: response.kl,
    spec.PartialKL: response.partial_kl,
    spec.ReverseKL: response.reverse_kl,
    spec.JS: response.js,
    spec.CE: response.ce,
    spec.LogitMSE: response.logit_mse,
    spec.DKD: response.dkd,
    spec.DIST: response.dist,
    spec.HiddenMSE: feature.hidden_mse,
    spec.HiddenCosine: feature.hidden_cosine,
    spec.EmbeddingMSE: feature.hidden_mse,
    spec.AttentionTransfer: feature.attention_transfer,
    spec.AttentionMaps: attention.attention_maps,
    spec.Relations: attention.relations,
    spec.RKD: relation.rkd,
    spec.SimilarityPreserving: relation.similarity_preserving,
    spec.CorrelationCongruence: relation.correlation_congruence,
    spec.Exits: exits.exits,
}
