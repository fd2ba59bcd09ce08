"""Claims about every loss in the table, checked against formulas written in float64 (``loss_references.py``)."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_references import EXITS, PAIRS, reference, softmax
from torch import Tensor, nn

from edgekd import spec
from edgekd.distill import learner
from edgekd.distill.losses import LOSSES, feature
from edgekd.distill.losses.exits import Exits
from edgekd.distill.losses.feature import Hints
from edgekd.distill.signal import Batch, Signal
from edgekd.tasks import examples

OPTIONS: list[Any] = [
    spec.KL(1.0, temperature=1.0),
    spec.KL(1.0, temperature=4.0),
    spec.PartialKL(),
    spec.ReverseKL(temperature=2.0),
    spec.JS(temperature=2.0),
    spec.CE(1.0),
    spec.CE(smoothing=0.1),
    spec.CE(labels="teacher"),
    spec.LogitMSE(1.0, centred=True),
    spec.LogitMSE(1.0, centred=False),
    spec.DKD(target=0.5, others=2.0),
    spec.DIST(group=2, inter=0.7, temperature=2.0),
    spec.HiddenMSE(layers=PAIRS),
    spec.HiddenCosine(layers=PAIRS),
    spec.EmbeddingMSE(),
    spec.AttentionTransfer(layers=PAIRS),
    spec.AttentionMaps(layers=PAIRS),
    spec.AttentionMaps(divergence="kl", layers=PAIRS),
    spec.Relations(heads=2, layers=PAIRS),
    spec.Relations(heads=1, of=("kk",), layers=PAIRS),
    spec.RKD(group=4),
    spec.RKD(group=3, distance=0.5),
    spec.SimilarityPreserving(group=2),
    spec.CorrelationCongruence(group=2, order=3),
    spec.Exits(at=(1, 3), hidden=0.3),
]
B, T, C, H = 4, 6, 5, 8
SHAPE = {"layers": 4, "hidden": H, "heads": 2}
MINIMUM = {spec.CE, spec.Exits}  # are not 0 where student and teacher are equal
NAMES = [str(option) for option in OPTIONS]
every_loss = pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
ANY = [*OPTIONS, spec.HiddenMSE(layers="learned")]  # whose mixture has a reference of its own
any_loss = pytest.mark.parametrize("option", ANY, ids=str)


def test_every_loss_is_tested_here() -> None:
    assert {type(option) for option in OPTIONS} == set(LOSSES)
    assert set(LOSSES) == set(spec.Loss.__args__)


def signal(seed: int, scale: float = 1.0, grad: bool = False, padded: int = 0, heads: int = 2) -> Signal:
    rng = torch.Generator().manual_seed(seed)

    def states() -> Tensor:
        x = torch.randn(B, T, H, generator=rng)
        noise = torch.full((B, padded, H), 1e3 * (seed + 1))
        return torch.cat([x, noise], 1).requires_grad_(grad)

    logits = (torch.randn(B, C, generator=rng) * scale).requires_grad_(grad)
    hidden = {layer: states() for layer in range(5)}
    attention = {layer: (states(), states(), states()) for layer in range(1, 5)}
    return Signal(logits, hidden, attention, heads, torch.randn(B, H, generator=rng).requires_grad_(grad))


def twin(teacher: Signal) -> Signal:
    """A student whose layers are those of the teacher that they are compared with."""
    hidden = {0: teacher.hidden[0], **{s: teacher.hidden[t] for s, t in PAIRS}}
    attention = {s: teacher.attention[t] for s, t in PAIRS}
    return dataclasses.replace(teacher, hidden=hidden, attention=attention).map(lambda x: x.detach().requires_grad_())


def tensors(given: Signal) -> list[Tensor]:
    assert given.pooled_BH is not None
    attention = [x for qkv in given.attention.values() for x in qkv]
    return [given.logits_BC, given.pooled_BH, *given.hidden.values(), *attention]


def batch(rows: slice = slice(None), padded: int = 0, mask: Tensor | None = None) -> Batch:
    lengths = torch.tensor([6, 4, 1, 3])
    valid = torch.arange(T + padded)[None] < lengths[:, None] if mask is None else mask
    inputs = {"input_ids": torch.zeros(B, T + padded, dtype=torch.long)[rows], "attention_mask": valid.long()[rows]}
    return Batch(inputs, torch.tensor([0, 1, 4, 2])[rows], B, int(lengths.sum()))


def own(option: Any) -> Any:
    if not isinstance(option, spec.Exits):
        return learner._own(option, SHAPE, SHAPE)
    found = Exits(EXITS, option)
    for head in found.heads.values():
        head.load_state_dict(EXITS.state_dict(), strict=False)
    return found.eval()


def value(option: Any, student: Signal, teacher: Signal | None, given: Batch) -> Tensor:
    return LOSSES[type(option)](option, student, teacher, given, own(option))


@every_loss
def test_a_loss_equals_its_formula_in_float64(option: Any) -> None:
    student, teacher, given = signal(0), signal(1), batch()
    assert value(option, student, teacher, given).item() == pytest.approx(
        reference(option, student, teacher, given), rel=1e-5
    )


@pytest.mark.parametrize("divergence", ["mse", "kl"])
@pytest.mark.parametrize(("own", "theirs"), [(2, 4), (4, 2), (1, 8)])
def test_attention_maps_of_other_numbers_of_heads_are_compared_by_groups(
    own: int, theirs: int, divergence: Any
) -> None:
    option = spec.AttentionMaps(divergence=divergence, layers=PAIRS)
    student, teacher = signal(0, heads=own), signal(1, heads=theirs)
    assert value(option, student, teacher, batch()).item() == pytest.approx(
        reference(option, student, teacher, batch()), rel=1e-5
    )


def test_keys_that_several_heads_share_serve_each_of_them() -> None:
    option, teacher = spec.AttentionMaps(layers=PAIRS), signal(1, heads=4)
    few = {n: (q, k[..., : H // 2], v[..., : H // 2]) for n, (q, k, v) in teacher.attention.items()}
    teacher = dataclasses.replace(teacher, attention=few)
    expected = reference(option, signal(0), teacher, batch())
    assert value(option, signal(0), teacher, batch()).item() == pytest.approx(expected, rel=1e-5)


def test_relations_and_examples_are_compared_across_widths() -> None:
    student = signal(0)
    narrow = {n: (q[..., :4], k[..., :4], v[..., :4]) for n, (q, k, v) in student.attention.items()}
    assert student.pooled_BH is not None
    student = dataclasses.replace(student, attention=narrow, pooled_BH=student.pooled_BH[:, :3])
    for option in (spec.Relations(heads=2, layers=PAIRS), spec.RKD(group=4), spec.CorrelationCongruence(group=4)):
        expected = reference(option, student, signal(1), batch())
        assert value(option, student, signal(1), batch()).item() == pytest.approx(expected, rel=1e-5)


def test_an_example_without_a_label_adds_nothing_to_the_cross_entropy() -> None:
    student, given = signal(0, grad=True), batch()
    given.labels_B[1] = examples.UNLABELLED
    loss = value(spec.CE(), student, None, given)
    loss.backward()
    log_q = np.log(softmax(student.logits_BC.detach().numpy().astype(np.float64)))
    assert loss.item() == pytest.approx(-sum(log_q[i, given.labels_B[i]] for i in (0, 2, 3)) / B, rel=1e-5)
    assert student.logits_BC.grad is not None
    assert student.logits_BC.grad[1].eq(0).all() and student.logits_BC.grad[0].ne(0).all()


def test_an_example_without_a_label_is_decoupled_at_the_teachers_answer() -> None:
    given, option = batch(), spec.DKD()
    given.labels_B[1] = examples.UNLABELLED
    expected = reference(option, signal(0), signal(1), given)
    assert value(option, signal(0), signal(1), given).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("option", [o for o in OPTIONS if type(o) not in MINIMUM], ids=str)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(option: Any) -> None:
    student = twin(signal(0))
    loss = value(option, student, signal(0), batch())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(x.grad is None or x.grad.abs().max() < 1e-6 for x in tensors(student))


@pytest.mark.parametrize("option", [o for o in OPTIONS if type(o) not in MINIMUM], ids=str)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(1, 10_000))
def test_no_student_has_less_loss_than_one_equal_to_its_teacher(option: Any, seed: int) -> None:
    assert value(option, signal(seed), signal(0), batch()).item() > 1e-4


def test_smoothed_cross_entropy_is_least_at_the_smoothed_labels() -> None:
    given, smoothing = batch(), 0.1
    target_BC = torch.full((B, C), smoothing / C)
    target_BC[torch.arange(B), given.labels_B] += 1 - smoothing
    student = Signal(target_BC.log().requires_grad_())
    loss = value(spec.CE(smoothing=smoothing), student, None, given)
    loss.backward()
    assert loss.item() == pytest.approx(float(-(target_BC * target_BC.log()).sum(1).mean()), rel=1e-6)
    assert student.logits_BC.grad is not None and student.logits_BC.grad.abs().max() < 1e-6


def test_an_exit_that_says_what_the_deepest_layer_does_has_no_loss_but_that_of_the_labels() -> None:
    option, student, given = spec.Exits(at=(1, 3), labels=0.0), signal(0), batch()
    states = dict.fromkeys(student.hidden, student.hidden[4])
    with torch.no_grad():
        answer = EXITS.classifier(EXITS.bert.pooler(states[4]))
    alike = dataclasses.replace(student, logits_BC=answer, hidden=states)
    assert value(option, alike, None, given).item() == pytest.approx(0.0, abs=1e-6)


@any_loss
def test_inputs_that_are_never_padded_need_no_mask(option: Any) -> None:
    given = batch()
    inputs = {"attention_mask": torch.ones(B, T, dtype=torch.int64)}
    full, bare = (dataclasses.replace(given, inputs=one) for one in (inputs, {"pixel_values": torch.zeros(B, 3, 8, 8)}))
    assert torch.equal(value(option, signal(0), signal(1), full), value(option, signal(0), signal(1), bare))


@any_loss
def test_the_teacher_gets_no_gradient(option: Any) -> None:
    teacher = signal(1, grad=True)
    value(option, signal(0, grad=True), teacher, batch()).backward()
    assert all(x.grad is None for x in tensors(teacher))


@any_loss
def test_padding_does_not_change_a_loss(option: Any) -> None:
    bare = value(option, signal(0), signal(1), batch())
    student, teacher = signal(0), signal(1)
    padded = [
        dataclasses.replace(
            wide,
            logits_BC=plain.logits_BC,
            pooled_BH=plain.pooled_BH,
            hidden={n: torch.cat([x, wide.hidden[n][:, T:]], 1) for n, x in plain.hidden.items()},
            attention={
                n: tuple(torch.cat([x, y[:, T:]], 1) for x, y in zip(qkv, wide.attention[n], strict=True))
                for n, qkv in plain.attention.items()
            },
        )
        for plain, wide in ((student, signal(5, padded=3)), (teacher, signal(6, padded=3)))
    ]
    assert value(option, *padded, batch(padded=3)).item() == pytest.approx(bare.item(), rel=1e-6)


@any_loss
def test_what_the_teacher_has_not_read_does_not_change_a_loss(option: Any) -> None:
    student, read = signal(0, grad=True), torch.arange(T) < T - 2
    teacher = dataclasses.replace(signal(1), read_BT=read.expand(B, T))
    value(option, student, teacher, batch()).backward()
    other = teacher.map(lambda x: x.clone() if x.ndim == 2 else torch.where(read[None, :, None], x, 7.0))
    assert value(option, student, other, batch()).item() == value(option, student, teacher, batch()).item()
    if not isinstance(option, spec.Exits):  # which compare the student with itself
        assert all(x.grad is None or x.ndim == 2 or x.grad[:, ~read].eq(0).all() for x in tensors(student))


def part(given: Signal, rows: slice) -> Signal:
    return given.map(lambda x: x[rows])


@pytest.mark.parametrize("option", [option for option in ANY if getattr(option, "group", 1) < B], ids=str)
def test_micro_batches_add_up_to_the_big_batch(option: Any) -> None:
    cuts = {3: (0, 3, 4), 2: (0, 2, 4), 1: (0, 1, 4)}[getattr(option, "group", 1)]
    whole, pieces = signal(0, grad=True), signal(0, grad=True)
    value(option, whole, signal(1), batch()).backward()
    for rows in (slice(*cut) for cut in itertools.pairwise(cuts)):
        value(option, part(pieces, rows), part(signal(1), rows), batch(rows)).backward()
    for one, other in zip(tensors(whole), tensors(pieces), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-7)


@any_loss
def test_losses_stay_finite_on_huge_logits_and_fully_padded_rows(option: Any) -> None:
    student, teacher = signal(0, scale=1e4), signal(1, scale=1e4)
    assert student.pooled_BH is not None
    pooled = student.pooled_BH.clone()
    pooled[1:3] = 0.0  # as the mean over no tokens is: two examples at one place
    student = dataclasses.replace(student, pooled_BH=pooled).map(lambda x: x.requires_grad_())
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0, 0] = True
    loss = value(option, student, teacher, batch(mask=mask))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in tensors(student))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_loss
def test_half_precision_signals_are_accepted(option: Any, dtype: torch.dtype) -> None:
    teacher = signal(1).map(lambda x: x.to(dtype))
    loss = value(option, signal(0), teacher, batch())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(option, signal(0), teacher, batch()), rel=1e-5)


@pytest.mark.parametrize("kind", [spec.KL, spec.ReverseKL, spec.JS, spec.DKD, spec.DIST], ids=lambda k: k.__name__)
@settings(max_examples=20, deadline=None)
@given(temperature=st.floats(0.5, 8.0), seed=st.integers(0, 10_000))
def test_softmax_is_blind_to_a_constant_added_to_all_logits(kind: Any, temperature: float, seed: int) -> None:
    option, student, teacher = kind(1.0, temperature=temperature), signal(seed), signal(seed + 1)
    shifted = dataclasses.replace(student, logits_BC=student.logits_BC + 7.0)
    a, b = (value(option, s, teacher, batch()).item() for s in (student, shifted))
    assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_with_two_classes_decoupling_leaves_the_target_alone() -> None:
    student, teacher = (Signal(signal(seed).logits_BC[:, :2]) for seed in (0, 1))
    given = dataclasses.replace(batch(), labels_B=torch.tensor([0, 1, 0, 1]))
    found = value(spec.DKD(target=1.0, others=8.0, temperature=1.0), student, teacher, given)
    torch.testing.assert_close(found, value(spec.KL(), student, teacher, given))


def test_a_projection_is_the_1x1_convolution_of_a_feature_map() -> None:
    torch.manual_seed(0)
    hints = Hints(((0, 0),), 3, 5)
    features = torch.randn(2, 3, 4, 4)
    linear: Any = hints.project[0]
    convolution = nn.functional.conv2d(features, linear.weight[:, :, None, None], linear.bias)
    positions = features.flatten(2).transpose(1, 2)
    ((project, states, _),) = hints(Signal(features, {0: positions}), Signal(features, {0: torch.zeros(2, 16, 5)}))
    torch.testing.assert_close(project(states), convolution.flatten(2).transpose(1, 2))


def test_the_slopes_of_the_projected_error_are_those_of_finite_differences() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = ((7, 3), (5, 3), (5,), (7, 5))  # student, weight, bias, teacher: a mixture of layers learns too
    given = [torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(feature._projected_error, given)


def test_a_learned_map_gives_each_layer_a_mixture_of_the_teachers_and_learns_it() -> None:
    option = spec.HiddenMSE(layers="learned")
    shape = SHAPE | {"layers": 2}
    own: Any = learner._own(option, shape, SHAPE)
    with torch.no_grad():
        own.mix.copy_(torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]]))
    student, teacher, given = signal(0), signal(1), batch()
    loss = LOSSES[spec.HiddenMSE](option, student, teacher, given, own)
    valid, expected = given.inputs["attention_mask"].bool().numpy(), []
    for s, weights in ((1, np.arange(4.0)), (2, np.arange(4.0)[::-1])):
        mixed = sum(w * teacher.hidden[t + 1].numpy()[valid] for t, w in enumerate(softmax(weights)))
        expected.append(((student.hidden[s].numpy()[valid] - mixed) ** 2).mean())
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    loss.backward()
    assert own.mix.grad.abs().min() > 0


def test_partial_kl_takes_unknown_classes_as_one_and_is_the_whole_where_all_are_known() -> None:
    student, teacher, given = signal(0), signal(1), batch()
    known = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [1, 1, 1, 0, 1]]).bool()
    p, q = (softmax(x.logits_BC.detach().numpy().astype(np.float64)) for x in (teacher, student))
    expected = 0.0
    for row, mask in enumerate(known.numpy()):
        bins = [(p[row, c], q[row, c]) for c in range(C) if mask[c]]
        bins += [] if mask.all() else [(p[row][~mask].sum(), q[row][~mask].sum())]
        expected += sum(a * np.log(a / b) for a, b in bins) / B
    partial = dataclasses.replace(teacher, known_BC=known)
    assert value(spec.PartialKL(), student, partial, given).item() == pytest.approx(expected, rel=1e-5)
    assert expected < value(spec.KL(), student, teacher, given).item()


def test_partial_kl_learns_from_answers_that_are_certain() -> None:
    sure = torch.full((B, C), -torch.inf)
    sure[torch.arange(B), torch.tensor([0, 1, 4, 2])] = 0.0
    student = signal(0, grad=True)
    for known in (torch.ones(B, C, dtype=torch.bool), sure == 0.0):  # of the others nothing is known, or that it is 0
        loss = value(spec.PartialKL(), student, Signal(sure, known_BC=known), batch())
        assert loss.item() == pytest.approx(value(spec.CE(), student, None, batch()).item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, student.logits_BC)
        expected = (student.logits_BC.softmax(-1) - sure.exp()) / B
        torch.testing.assert_close(gradient, expected)


def test_the_answer_of_a_teacher_is_a_class_that_it_named() -> None:
    logits = torch.tensor([[0.2, 0.1, 0.7]]).log()
    given = Signal(logits, known_BC=torch.tensor([[True, True, False]]))
    assert given.answers_B.tolist() == [0] and Signal(logits).answers_B.tolist() == [2]
