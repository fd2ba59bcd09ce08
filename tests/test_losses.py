"""Claims about every loss in the table, checked against formulas written in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekd import spec
from edgekd.distill.losses import LOSSES, total
from edgekd.distill.signal import Batch, Signal
from edgekd.tasks import text_classification

OPTIONS = [
    spec.KL(1.0, temperature=1.0),
    spec.KL(1.0, temperature=4.0),
    spec.CE(1.0),
    spec.LogitMSE(1.0, centred=True),
    spec.LogitMSE(1.0, centred=False),
    spec.HiddenMSE(1.0),
]
B, T, C, H = 4, 6, 5, 3


def test_every_loss_is_tested_here() -> None:
    assert {type(option) for option in OPTIONS} == set(LOSSES)


def signal(seed: int, scale: float = 1.0, grad: bool = False, padded: int = 0) -> Signal:
    rng = torch.Generator().manual_seed(seed)
    logits = (torch.randn(B, C, generator=rng) * scale).requires_grad_(grad)
    hidden = {layer: torch.randn(B, T, H, generator=rng) for layer in (0, 2)}
    if padded:
        noise = torch.full((B, padded, H), 1e3 * (seed + 1))
        hidden = {layer: torch.cat([states, noise], 1) for layer, states in hidden.items()}
    return Signal(logits, {layer: states.requires_grad_(grad) for layer, states in hidden.items()})


def batch(rows: slice = slice(None), padded: int = 0, mask: Tensor | None = None) -> Batch:
    lengths = torch.tensor([6, 4, 1, 3])
    valid = torch.arange(T + padded)[None] < lengths[:, None] if mask is None else mask
    inputs = {"input_ids": torch.zeros(B, T + padded, dtype=torch.long)[rows], "attention_mask": valid.long()[rows]}
    return Batch(inputs, torch.tensor([0, 1, 4, 2])[rows], B, int(lengths.sum()))


def part(given: Signal, rows: slice) -> Signal:
    return Signal(given.logits_BC[rows], {layer: states[rows] for layer, states in given.hidden.items()})


def softmax64(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reference(option: spec.Loss, student: Signal, teacher: Signal, given: Batch) -> float:
    """The paper's formula, example by example, in float64."""
    s, t = (x.logits_BC.detach().numpy().astype(np.float64) for x in (student, teacher))
    if isinstance(option, spec.KL):
        p, q = softmax64(t / option.temperature), softmax64(s / option.temperature)
        return float(option.temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean())
    if isinstance(option, spec.CE):
        return float(-np.log(softmax64(s)[np.arange(B), given.labels_B.numpy()]).mean())
    if isinstance(option, spec.LogitMSE):
        if option.centred:
            s, t = s - s.mean(1, keepdims=True), t - t.mean(1, keepdims=True)
        return float(((s - t) ** 2).mean())
    valid = given.mask_BT.numpy()
    pairs = [(student.hidden[i].detach().numpy(), teacher.hidden[i].detach().numpy()) for i in teacher.hidden]
    return float(np.mean([((a[valid].astype(np.float64) - b[valid]) ** 2).mean() for a, b in pairs]))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_loss_equals_its_formula_in_float64(option: spec.Loss) -> None:
    student, teacher, given = signal(0), signal(1), batch()
    assert LOSSES[type(option)](option, student, teacher, given).item() == pytest.approx(
        reference(option, student, teacher, given), rel=1e-5
    )


def test_an_example_without_a_label_adds_nothing_to_the_cross_entropy() -> None:
    student, given = signal(0, grad=True), batch()
    given.labels_B[1] = text_classification.UNLABELLED
    loss = LOSSES[spec.CE](spec.CE(), student, None, given)
    loss.backward()
    log_q = np.log(softmax64(student.logits_BC.detach().numpy().astype(np.float64)))
    assert loss.item() == pytest.approx(-sum(log_q[i, given.labels_B[i]] for i in (0, 2, 3)) / B, rel=1e-5)
    assert student.logits_BC.grad is not None
    assert student.logits_BC.grad[1].eq(0).all() and student.logits_BC.grad[0].ne(0).all()


@pytest.mark.parametrize("option", [o for o in OPTIONS if not isinstance(o, spec.CE)], ids=str)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(option: spec.Loss) -> None:
    student = signal(0, grad=True)
    loss = LOSSES[type(option)](option, student, signal(0), batch())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    for tensor in (student.logits_BC, *student.hidden.values()):
        assert tensor.grad is None or tensor.grad.abs().max() < 1e-6


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_the_teacher_gets_no_gradient(option: spec.Loss) -> None:
    teacher = signal(1, grad=True)
    LOSSES[type(option)](option, signal(0, grad=True), teacher, batch()).backward()
    assert teacher.logits_BC.grad is None and all(states.grad is None for states in teacher.hidden.values())


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_padding_does_not_change_a_loss(option: spec.Loss) -> None:
    function = LOSSES[type(option)]
    bare = function(option, signal(0), signal(1), batch())
    padded = function(option, signal(0, padded=3), signal(1, padded=3), batch(padded=3))
    assert padded.item() == pytest.approx(bare.item(), rel=1e-6)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_micro_batches_of_any_size_add_up_to_the_big_batch(option: spec.Loss) -> None:
    function = LOSSES[type(option)]
    whole, pieces = signal(0, grad=True), signal(0, grad=True)
    function(option, whole, signal(1), batch()).backward()
    for rows in (slice(0, 1), slice(1, 4)):
        function(option, part(pieces, rows), part(signal(1), rows), batch(rows)).backward()
    for one, other in zip(
        (whole.logits_BC, *whole.hidden.values()), (pieces.logits_BC, *pieces.hidden.values()), strict=True
    ):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_losses_stay_finite_on_huge_logits_and_fully_padded_rows(option: spec.Loss) -> None:
    student = signal(0, scale=1e4, grad=True)
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0, 0] = True
    loss = LOSSES[type(option)](option, student, signal(1, scale=1e4), batch(mask=mask))
    loss.backward()
    assert torch.isfinite(loss)
    for tensor in (student.logits_BC, *student.hidden.values()):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_half_precision_signals_are_accepted(option: spec.Loss, dtype: torch.dtype) -> None:
    teacher = Signal(signal(1).logits_BC.to(dtype), {k: v.to(dtype) for k, v in signal(1).hidden.items()})
    loss = LOSSES[type(option)](option, signal(0), teacher, batch())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(option, signal(0), signal(1), batch()), rel=3e-2)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 8.0), st.integers(0, 10_000))
def test_kl_is_blind_to_a_constant_added_to_all_logits(temperature: float, seed: int) -> None:
    option, student, teacher = spec.KL(1.0, temperature), signal(seed), signal(seed + 1)
    shifted = Signal(student.logits_BC + 7.0)
    a, b = (LOSSES[spec.KL](option, s, teacher, batch()).item() for s in (student, shifted))
    assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_losses_are_added_with_their_weights() -> None:
    losses = (spec.KL(0.9, 2.0), spec.CE(0.1))
    parts = [o.weight * LOSSES[type(o)](o, signal(0), signal(1), batch()).item() for o in losses]
    assert total(losses, signal(0), signal(1), batch()).item() == pytest.approx(sum(parts), rel=1e-6)
