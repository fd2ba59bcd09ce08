"""Logits over a whole split, and how they compare with labels and with a teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.distill.data import Tokens, by_length, micro_batches, model_inputs
from edgekd.progress import Progress


def logits(
    model: Any,
    tokens: Tokens,
    batch_size: int = 64,
    autocast: bool = False,
    progress: Progress | None = None,
    name: str = "scoring",
) -> NDArray[np.float32]:
    """The model's logits (N, C) over ``tokens``, in its order; dropout off, bf16 matrix products if ``autocast``."""
    device = next(model.parameters()).device
    out: NDArray[np.float32] | None = None
    training = model.training
    model.eval()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=autocast),
        (progress or Progress(quiet=True)).bar(name, total=len(tokens), unit="example") as advance,
    ):
        for rows in by_length(tokens, batch_size):
            ids, mask, _ = tokens.gather(rows)
            inputs = {name: x.to(device) for name, x in model_inputs(ids, mask).items()}
            result = model(**inputs).logits.float().cpu().numpy()
            if out is None:
                out = np.empty((len(tokens), result.shape[1]), np.float32)
            out[rows] = result
            advance(len(rows))
    model.train(training)
    assert out is not None
    return out


def loss(learner: Any, tokens: Tokens, teacher: Any, batch_size: int = 64) -> float:
    """The weighted loss of a ``Learner`` over all of ``tokens`` as one batch, with the weights at the training's end.

    ``teacher`` is a label store's split. A loss within groups has others where they do not divide ``batch_size``.
    """
    device = next(learner.parameters()).device
    order = np.argsort(tokens.lengths, kind="stable")
    training = learner.training
    learner.eval()
    with torch.inference_mode():
        parts = [learner(batch.to(device)) for batch in micro_batches(tokens, order, batch_size, teacher, 1.0)]
    learner.train(training)
    return float(torch.stack(parts).double().sum())


def compare(
    student: NDArray[np.float32],
    labels: NDArray[np.int64],
    teacher: NDArray[np.float32] | None,
    known: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Accuracy (``score``) and, with a teacher, top-1 agreement and KL(teacher ‖ student) in nats, in float64.

    ``known``: of which classes the teacher told the probability; the others count as one. Where its logits are NaN it
    has no answer, and that example counts for the score alone.
    """
    result = {"score": float((student.argmax(1) == labels).mean())}
    if teacher is None:
        return result
    best = teacher.argmax(1)
    if known is not None:
        told = ~np.isnan(teacher[:, 0])
        student, teacher, known = student[told], teacher[told], known[told]
        best = answers(teacher, known)
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x.astype(np.float64)), 1) for x in (teacher, student))
    if known is not None:
        log_p, log_q = (_bins(x, torch.from_numpy(known)) for x in (log_p, log_q))
    terms = (log_p.exp() * (log_p - log_q)).where(log_p > -torch.inf, 0.0)
    return result | {"agreement": float((student.argmax(1) == best).mean()), "kl": float(terms.sum(1).mean())}


def _bins(log_p_NC: torch.Tensor, known_NC: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the known classes, and of all others together, (N, C + 1)."""
    never = -torch.inf
    others_N1 = log_p_NC.masked_fill(known_NC, never).logsumexp(1, keepdim=True)
    return torch.cat([log_p_NC.masked_fill(~known_NC, never), others_N1], 1)


def answers(logits: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The most probable class of those that are known, (N,); -1 where there is no answer."""
    best = np.where(known, np.nan_to_num(logits, nan=-np.inf), -np.inf).argmax(1)
    return np.where(np.isnan(logits[:, 0]), -1, best)
