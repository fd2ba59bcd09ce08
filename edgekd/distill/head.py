"""Train the head of a classifier on what its frozen backbone says, which is computed once for each example.

The head is one linear layer, so this is multinomial logistic regression: convex, and solved by L-BFGS in seconds. The
states of a decoder's last token differ in scale from channel to channel; the penalty is on the weights of channels
divided by their standard deviation, and the division is then folded into the head.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.distill import labels
from edgekd.distill.data import Tokens
from edgekd.distill.taps import LOGITS
from edgekd.errors import TargetError
from edgekd.progress import Progress

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
"""Half of each times the sum of the squared weights is added to the mean loss."""


def fit(
    model: Any, tokens: Mapping[str, Tokens], *, out: Path, device: torch.device, bf16: bool, progress: Progress
) -> dict[str, Any]:
    """Train the head in place on ``tokens["train"]``; a summary as ``loop.fit`` returns, and ``history.jsonl``.

    Of ``PENALTIES`` the one with the lowest loss on ``tokens["validation"]`` is kept, a smoother yardstick than
    accuracy on few examples. Called again with the same ``out``, it goes on where it stopped; ``clean`` removes what
    that needs. All states must fit into memory. Raises ``TargetError`` for a head of several layers.
    """
    began = time.monotonic()
    name = path(model)
    linear: nn.Linear = model.get_submodule(name)
    model.set_submodule(name, nn.Identity())  # what reaches the head comes out in the place of logits
    states: dict[str, Tensor] = {}
    truth: dict[str, Tensor] = {}
    for split in ("train", "validation"):
        labels.compute(out, f"states-{split}", tokens[split], model, LOGITS, device, progress, bf16=bf16, who="teacher")
        states[split] = torch.from_numpy(np.load(out / f"states-{split}.logits.npy"))
        truth[split] = torch.from_numpy(tokens[split].labels)
    model.set_submodule(name, linear)
    weight_CH = torch.zeros(linear.out_features, linear.in_features)
    bias_C: Tensor | None = None if linear.bias is None else torch.zeros(linear.out_features)
    history: list[dict[str, float]] = []
    best: dict[str, float] = {}
    with progress.bar("teacher: head", total=len(PENALTIES), unit="penalty") as advance:
        for penalty in PENALTIES:  # each begins where the stronger one ended
            weight_CH, bias_C = logistic(states["train"], truth["train"], penalty, weight_CH, bias_C)
            logits_NC = F.linear(states["validation"].double(), weight_CH, bias_C)
            loss = float(F.cross_entropy(logits_NC, truth["validation"]))
            score = float((logits_NC.argmax(1) == truth["validation"]).double().mean())
            history.append({"penalty": penalty, "loss": loss, "score": score})
            advance(1, loss=loss, score=score)
            if not best or loss < best["loss"]:
                best = history[-1]
                with torch.no_grad():
                    linear.weight.copy_(weight_CH)
                    if bias_C is not None:
                        linear.bias.copy_(bias_C)
    (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    seconds = round(time.monotonic() - began, 3)
    return {"epochs": None, "steps": None, "seconds": seconds, "step_ms": None, "best": best}


def clean(out: Path) -> None:
    """Remove the states, once the stage has written what it keeps."""
    for file in out.glob("states-*"):
        file.unlink()


def path(model: Any) -> str:
    """Where the head is. Raises ``TargetError`` where more than one linear layer stands on the backbone."""
    prefix = f"{model.base_model_prefix}."
    found: set[str] = {name.rpartition(".")[0] for name, _ in model.named_parameters() if not name.startswith(prefix)}
    if len(found) != 1 or type(model.get_submodule(min(found))) is not nn.Linear:
        raise TargetError(
            f"teacher.finetune.train='head' trains one linear layer, and the head of {type(model).__name__} consists "
            f"of {', '.join(sorted(found))}: choose 'all' or 'lora'"
        )
    return min(found)


def logistic(
    x_NH: Tensor, y_N: Tensor, penalty: float, weight_CH: Tensor, bias_C: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weight (C, H) and bias (C,), float64, of multinomial logistic regression; without ``bias_C`` there is none.

    The minimum of the mean cross-entropy plus ``penalty / 2`` times the sum of (weight x standard deviation of its
    channel) squared: multiplying a channel by a number changes no answer. It is sought from what is given.
    """
    x_NH = x_NH.double()
    spread_H = x_NH.std(0)
    spread_H = torch.where(spread_H > 0, spread_H, 1.0)
    weight = (weight_CH.double() * spread_H).requires_grad_()
    learned, bias, middle_H = [weight], None, torch.zeros_like(spread_H)
    if bias_C is not None:  # only a bias can make up for what centring takes away
        middle_H = x_NH.mean(0)
        bias = (bias_C.double() + weight_CH.double() @ middle_H).requires_grad_()
        learned.append(bias)
    z_NH = (x_NH - middle_H) / spread_H
    solver = torch.optim.LBFGS(
        learned,
        max_iter=500,
        history_size=20,
        tolerance_grad=1e-5,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(z_NH, weight, bias), y_N) + penalty / 2 * weight.square().sum()
        torch.autograd.backward(value)
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    folded_CH = weight.detach() / spread_H
    return folded_CH, None if bias is None else bias.detach() - folded_CH @ middle_H
