"""Logits over a whole split, and how they compare with labels and with a teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.distill.data import Tokens, by_length, model_inputs
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
