"""The one training loop: teacher fine-tuning, distillation and quantization-aware distillation all run through it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd import spec
from edgekd.distill import checkpoint, heap
from edgekd.distill.data import Tokens, epoch_steps, micro_batches
from edgekd.errors import StoreError, TrainingError
from edgekd.progress import Progress

CHECKPOINT_SECONDS = 60.0  # at least this often, and at the end of every epoch
LATEST, BEST = "checkpoint.safetensors", "best.safetensors"
LOSS_LAG = {"cpu": 1, "cuda": 16}  # steps between reads of loss and gradient norm: each read would stall a GPU


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and how it is judged.

    ``module(batch) -> loss`` is the learner. ``evaluate() -> {"score": ..., ...}`` judges it on validation; the
    highest ``rank`` of its results is kept: the lowest KL to the teacher where there is one, a smoother yardstick than
    accuracy on few examples; else the highest score. ``before_step(step, last)`` may change ranges (see
    ``edgekd.quant``). ``autocast``: bf16 matrix products (never under fake-quantization). ``rows``: the
    examples to train on, if not all. ``rates``: parts of the module with another learning rate than the optimizer's.
    ``continues``: this goes on where another training ended, and so do the losses' ramps.
    """

    name: str
    module: torch.nn.Module
    tokens: Tokens
    teacher: Any
    evaluate: Callable[[], dict[str, float]]
    before_step: Callable[[int, int], None] = lambda step, last: None
    autocast: bool = False
    rows: NDArray[np.int64] | None = None
    rates: Sequence[tuple[torch.nn.Module, float]] = ()
    continues: bool = False
    rank: Callable[[dict[str, float]], float] = lambda result: -result["kl"] if "kl" in result else result["score"]


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Optimizer steps in one pass over the data."""
    return math.ceil(examples / batch_size)


@heap.kept()
def fit(
    task: Task, *, epochs: float, options: spec.Optimizer, seed: int, out: Path, progress: Progress
) -> dict[str, Any]:
    """Train ``task.module`` in place and leave it with its best weights on validation; returns a summary.

    Interrupted at any point and called again with the same ``out``, it goes on exactly: on one CPU the final bytes
    are those of an uninterrupted run. Raises ``TrainingError`` at a loss or gradient that is not finite, naming the
    step; the last good checkpoint stays in ``out``.
    """
    module, tokens = task.module, task.tokens
    device = next(module.parameters()).device
    rows = np.arange(len(tokens)) if task.rows is None else task.rows
    per_epoch = steps_per_epoch(len(rows), options.batch_size)
    last = max(1, round(epochs * per_epoch))
    optimizer = _adamw(module, options, device, task.rates)
    schedule = _schedule(options, last)
    latest, best = out / LATEST, out / BEST
    torch.manual_seed(seed)
    state = _resume(task, optimizer, out, progress)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    pending: list[tuple[int, torch.Tensor]] = []
    shown = math.nan
    began = saved = time.monotonic()
    steps: list[Any] = []
    module.train()
    with progress.bar(task.name, total=last, start=state["step"], unit="step") as advance:
        while state["step"] < last:
            step = state["step"]
            epoch, place = divmod(step, per_epoch)
            if place == 0 or not steps:
                module.train()
                steps = [rows[part] for part in epoch_steps(tokens.lengths[rows], options.batch_size, seed, epoch)]
            task.before_step(step, last)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step)
            loss = _step(task, steps[place], options, device, 1.0 if task.continues else step / last)
            norm = torch.nn.utils.clip_grad_norm_(parameters, options.clip_norm)
            pending.append((step, torch.stack([loss, norm])))
            if len(pending) >= LOSS_LAG[device.type] or math.isnan(shown):
                shown = _check(task.name, pending, latest)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state["step"] = step + 1
            advance(1, loss=shown)
            ended = place + 1 == per_epoch or step + 1 == last
            if ended or time.monotonic() - saved > CHECKPOINT_SECONDS:
                if pending:  # only what has been looked at may be saved
                    shown = _check(task.name, pending, latest)
                if ended:
                    _judge(task, state, epoch, shown, best)
                now = time.monotonic()
                state["seconds"], began = state["seconds"] + now - began, now
                checkpoint.save(latest, module, optimizer, state)
                saved = time.monotonic()
    module.load_state_dict(checkpoint.unseal(best)[0])
    module.eval()
    (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in state["history"]))
    return {
        "epochs": epochs,
        "steps": last,
        "seconds": round(state["seconds"], 3),
        "step_ms": round(1e3 * state["seconds"] / last, 3),
        "best": state["best"],
    }


def clean(out: Path) -> None:
    """Remove the loop's checkpoints, once the stage has written what it keeps."""
    (out / LATEST).unlink(missing_ok=True)
    (out / BEST).unlink(missing_ok=True)


def _resume(task: Task, optimizer: torch.optim.Optimizer, out: Path, progress: Progress) -> dict[str, Any]:
    """Put the state of an interrupted try back in place and return its counters; those of a new one without any.

    A checkpoint that is damaged, or whose best weights are, is dropped with a warning: that training starts anew.
    """
    if (out / LATEST).exists():
        try:
            tensors, state = checkpoint.unseal(out / LATEST)
            if state["best"] is not None:
                checkpoint.unseal(out / BEST)
        except StoreError as error:
            progress.log(f"warning: {error}; {task.name} is trained anew")
            clean(out)
        else:
            checkpoint.restore(tensors, task.module, optimizer)
            return dict(state)
    return {"step": 0, "best": None, "history": [], "seconds": 0.0}


def _step(task: Task, rows: Any, options: spec.Optimizer, device: torch.device, progress: float) -> torch.Tensor:
    total = torch.zeros((), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=task.autocast)
    for batch in micro_batches(task.tokens, rows, options.micro_batch_size, task.teacher, progress):
        with autocast:
            loss = task.module(batch.to(device))
        loss.backward()
        total += loss.detach()
    return total


def _check(name: str, pending: list[tuple[int, torch.Tensor]], latest: Path) -> float:
    """Read the (loss, gradient norm) pairs not looked at yet, in one transfer; returns the last loss, to be shown."""
    values = torch.stack([pair for _, pair in pending]).tolist()
    for (step, _), (loss, norm) in zip(pending, values, strict=True):
        for what, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                kept = f"the last good checkpoint is {latest}" if latest.exists() else "no checkpoint was written yet"
                raise TrainingError(
                    f"{name}: the {what} is {value} at step {step}; {kept}. "
                    "Lower the learning rate or its warm-up's slope, or look at that batch's data."
                )
    pending.clear()
    return float(values[-1][0])


def _judge(task: Task, state: dict[str, Any], epoch: int, loss: float, best: Path) -> None:
    task.module.eval()
    row = {"epoch": epoch + 1, "step": state["step"], "loss": loss, **task.evaluate()}
    if not math.isfinite(task.rank(row)):
        raise TrainingError(
            f"{task.name}: the answers on validation are not finite after step {row['step']}. Lower the learning rate, "
            "or look at that split's data."
        )
    state["history"].append(row)
    if state["best"] is None or task.rank(row) > task.rank(state["best"]):
        state["best"] = row
        checkpoint.seal(task.module.state_dict(), best)


def _adamw(
    module: torch.nn.Module,
    options: spec.Optimizer,
    device: torch.device,
    rates: Sequence[tuple[torch.nn.Module, float]],
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); matrices decay; biases, norms and learned scales (one a row) do not."""
    other = {p: rate for part, rate in rates for p in part.parameters()}
    groups: list[dict[str, Any]] = []
    for rate in dict.fromkeys((options.learning_rate, *other.values())):
        trained = [p for p in module.parameters() if p.requires_grad and other.get(p, options.learning_rate) == rate]
        rated = {"lr": rate, "initial_lr": rate}
        groups += [
            rated | {"params": [p for p in trained if p.squeeze().ndim > 1], "weight_decay": options.weight_decay},
            rated | {"params": [p for p in trained if p.squeeze().ndim <= 1], "weight_decay": 0.0},
        ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=fused)


def _schedule(options: spec.Optimizer, last: int) -> Callable[[int], float]:
    warmup = max(1, round(options.warmup_fraction * last))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        left = (last - step) / max(1, last - warmup)
        return left if options.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)

    return factor
