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
    student: NDArray[np.float32], labels: NDArray[np.int64], teacher: NDArray[np.float32] | None
) -> dict[str, float]:
    """Accuracy (``score``) and, with a teacher, top-1 agreement and KL(teacher ‖ student) in nats, in float64."""
    result = {"score": float((student.argmax(1) == labels).mean())}
    if teacher is not None:
        log_p, log_q = (
            torch.log_softmax(torch.from_numpy(x.astype(np.float64)), 1).numpy() for x in (teacher, student)
        )
        result["agreement"] = float((student.argmax(1) == teacher.argmax(1)).mean())
        result["kl"] = float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
    return result
