"""Claims about the training loop: exact resume, exact accumulation, and a stop that loses nothing."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from edgekd import spec
from edgekd.distill import checkpoint, evaluate, loop
from edgekd.distill.learner import Learner
from edgekd.errors import TrainingError
from edgekd.progress import Progress

QUIET = Progress(quiet=True)
OPTIONS = spec.Optimizer(learning_rate=2e-3, batch_size=8)


def task(model: Any, count: int = 44) -> loop.Task:
    data = tiny.data(count)
    validation = tiny.tokens(data.validation)

    def judge() -> dict[str, float]:
        return evaluate.compare(evaluate.logits(model, validation), validation.labels, None)

    return loop.Task("t", Learner(model, (spec.CE(),), None), tiny.tokens(data.train), None, judge)


def digest(model: torch.nn.Module) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


class Killed(BaseException):
    pass


def train(
    out: Path,
    epochs: float = 3,
    kill_at: int | None = None,
    options: spec.Optimizer = OPTIONS,
    count: int = 44,
    progress: Progress = QUIET,
) -> Any:
    model = tiny.bert(num_hidden_layers=1)
    given = task(model, count)
    seen = 0
    forward = given.module.forward

    def counted(batch: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == kill_at:
            raise Killed
        return forward(batch)

    given.module.forward = counted  # type: ignore[method-assign]
    loop.fit(given, epochs=epochs, options=options, seed=3, out=out, progress=progress)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a training that nothing interrupts ends in."""
    return digest(train(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("kill_at", [1, 4, 7, 13, 18])
def test_a_killed_run_resumed_ends_in_the_same_bytes(
    tmp_path: Path, whole: str, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step
    with pytest.raises(Killed):
        train(tmp_path, kill_at=kill_at)
    assert digest(train(tmp_path)) == whole


def test_a_finished_loop_called_again_does_not_train_again(tmp_path: Path, whole: str) -> None:
    train(tmp_path)
    assert digest(train(tmp_path, kill_at=1)) == whole


def test_accumulated_micro_batches_train_as_the_big_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grads = []
    for size in (None, 3):
        model = tiny.bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        given = task(model)
        options = spec.Optimizer(batch_size=8, micro_batch_size=size)
        loop._step(given, np.arange(8), options, torch.device("cpu"), 0.0)
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6)


def spoil(given: loop.Task, call: int, how: Callable[[torch.Tensor], torch.Tensor]) -> loop.Task:
    """The same task, whose loss is changed by ``how`` at the call of that number, counted from 1."""
    forward = given.module.forward
    calls = itertools.count(1)

    def spoiled(batch: Any) -> torch.Tensor:
        loss: torch.Tensor = forward(batch)
        return how(loss) if next(calls) == call else loss

    given.module.forward = spoiled  # type: ignore[method-assign]
    return given


def test_a_loss_that_is_not_finite_stops_names_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    model = tiny.bert(num_hidden_layers=1)
    given = spoil(task(model), 9, lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError, match=r"nan at step 8.*last good checkpoint is .*checkpoint\.safetensors"):
        loop.fit(given, epochs=3, options=OPTIONS, seed=0, out=tmp_path, progress=QUIET)
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("kill_at", [None, 10])
def test_losses_that_are_read_late_as_on_a_gpu_train_the_same(
    tmp_path: Path, whole: str, kill_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.LOSS_LAG, "cpu", loop.LOSS_LAG["cuda"])
    if kill_at:
        with pytest.raises(Killed):
            train(tmp_path, kill_at=kill_at)
    assert digest(train(tmp_path)) == whole


@pytest.mark.parametrize("lag", [1, 16])
def test_a_gradient_that_is_not_finite_stops_and_no_weights_after_it_are_saved(
    tmp_path: Path, lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.LOSS_LAG, "cpu", lag)
    model = tiny.bert(num_hidden_layers=1)
    # adds 0, with the gradient 0 * infinity
    given = spoil(task(model), 9, lambda loss: loss + (next(model.parameters()).sum() * 0).sqrt())
    with pytest.raises(TrainingError, match=r"the gradient's norm is nan at step 8; the last good checkpoint is"):
        loop.fit(given, epochs=3, options=OPTIONS, seed=0, out=tmp_path, progress=QUIET)
    tensors, state = checkpoint.unseal(tmp_path / loop.LATEST)
    assert state["step"] == 6  # the end of the first epoch
    assert all(torch.isfinite(tensor.double()).all() for tensor in tensors.values())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("file", [loop.LATEST, loop.BEST])
def test_a_damaged_checkpoint_is_dropped_with_a_warning_and_the_training_starts_anew(
    tmp_path: Path, whole: str, file: str, damage: Any
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, kill_at=13)
    damage(tmp_path / file)
    bars = tiny.Bars()
    assert digest(train(tmp_path, progress=bars)) == whole
    assert bars.done["t"] == 18
    if (file, damage) != (loop.LATEST, Path.unlink):  # without a checkpoint there is nothing to warn of
        assert len(bars.said) == 1 and file in bars.said[0] and "t is trained anew" in bars.said[0]


def test_a_kill_between_the_best_weights_and_the_checkpoint_loses_neither(
    tmp_path: Path, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def dying(path: Path, module: Any, optimizer: Any, state: Any) -> None:
        if state["step"] == 12:
            raise Killed
        save(path, module, optimizer, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "save", dying)
        train(tmp_path)
    bars = tiny.Bars()
    assert digest(train(tmp_path, progress=bars)) == whole
    assert bars.said == [] and bars.done["t"] == 12  # from the sixth step on


def test_scoring_shows_how_far_it_is() -> None:
    bars, tokens = tiny.Bars(), tiny.tokens(tiny.data(150).train)
    evaluate.logits(tiny.bert(), tokens, progress=bars, name="scoring test")
    assert bars.total == bars.done == {"scoring test": 150}


def test_the_weights_kept_are_the_best_on_validation(tmp_path: Path) -> None:
    model = tiny.bert(num_hidden_layers=1)
    given = task(model)
    scripted = iter([0.5, 0.9, 0.7])
    states: list[str] = []

    def judge() -> dict[str, float]:
        states.append(digest(model))
        return {"score": next(scripted)}

    given = replace(given, evaluate=judge)
    summary = loop.fit(given, epochs=3, options=OPTIONS, seed=0, out=tmp_path, progress=QUIET)
    assert summary["best"]["epoch"] == 2 and digest(model) == states[1]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3


def test_answers_that_are_not_finite_on_validation_stop_and_name_the_step(tmp_path: Path) -> None:
    given = replace(task(tiny.bert(num_hidden_layers=1)), evaluate=lambda: {"score": 0.5, "kl": float("nan")})
    with pytest.raises(TrainingError, match="on validation are not finite after step 6"):
        loop.fit(given, epochs=3, options=OPTIONS, seed=0, out=tmp_path, progress=QUIET)
    assert not (tmp_path / loop.BEST).exists()


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    linear = loop._schedule(spec.Optimizer(warmup_fraction=0.1), 100)
    assert [linear(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert linear(10) == pytest.approx(1.0) and linear(55) == pytest.approx(0.5) and linear(100) == 0.0
    cosine = loop._schedule(spec.Optimizer(warmup_fraction=0.1, decay="cosine"), 100)
    assert cosine(55) == pytest.approx(0.5) and cosine(100) == pytest.approx(0.0, abs=1e-12)


def test_parts_with_a_rate_of_their_own_move_by_it() -> None:
    module = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    before = [p.detach().clone() for p in module.parameters()]
    options = spec.Optimizer(learning_rate=1e-2, weight_decay=0.0)
    optimizer = loop._adamw(module, options, torch.device("cpu"), [(module[1], 1e-4)])
    for p in module.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    moved = [float((old - p).mean()) for old, p in zip(before, module.parameters(), strict=True)]
    assert moved == pytest.approx([1e-2, 1e-2, 1e-4, 1e-4], rel=1e-2)  # the first step of Adam is the rate itself


def test_a_student_learns_its_task(tmp_path: Path) -> None:
    model = train(tmp_path, epochs=24, options=spec.Optimizer(learning_rate=1e-3, batch_size=16), count=320)
    test = tiny.tokens(tiny.data().test)
    assert evaluate.compare(evaluate.logits(model, test), test.labels, None)["score"] > 0.9
