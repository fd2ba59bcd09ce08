"""Claims about the student under its losses: weights that move, temperatures that learn, gradients kept in balance."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekd import spec
from edgekd.distill import labels, learner, loop
from edgekd.distill.data import Tokens, micro_batches
from edgekd.distill.learner import Learner, Temperature, at
from edgekd.distill.losses import LOSSES
from edgekd.distill.record import mean, projections, record
from edgekd.distill.taps import Needs, needs, stored, taps
from edgekd.errors import TargetError
from edgekd.progress import Progress
from edgekd.stages import labels as label_stage

QUIET, CPU = Progress(quiet=True), torch.device("cpu")
ALL = (
    spec.KL(), spec.HiddenMSE(0.1), spec.HiddenCosine(0.1, layers="learned"), spec.AttentionMaps(0.1),
    spec.Relations(0.1), spec.RKD(0.1, group=4), spec.CE(0.1),
)  # fmt: skip


def lesson(tmp_path: Path, losses: tuple[Any, ...], student: Any, teacher: Any) -> tuple[Tokens, labels.LabelStore]:
    tokens = tiny.tokens(tiny.split(40, 0))
    wanted = stored(taps(spec.Distill(losses=losses), spec.Student(layers=student.config.num_hidden_layers)), 4, 3)
    labels.compute(tmp_path, "train", tokens, teacher, wanted, CPU, QUIET)
    return tokens, labels.LabelStore(tmp_path, "train", wanted, teacher.config.num_attention_heads)


def shape(model: Any) -> dict[str, int]:
    config = model.config
    return {
        "layers": config.num_hidden_layers, "hidden": config.hidden_size, "heads": config.num_attention_heads
    }  # fmt: skip


@given(st.floats(0, 1), st.sampled_from(["linear", "cosine"]))
def test_a_ramp_goes_from_start_to_end_between_its_shares(progress: float, kind: Any) -> None:
    ramp = spec.Ramp(2.0, 6.0, begin=0.25, until=0.75, shape=kind)
    share = min(1.0, max(0.0, (progress - 0.25) / 0.5))
    expected = 2 + 4 * (share if kind == "linear" else (1 - math.cos(math.pi * share)) / 2)
    assert at(ramp, progress) == pytest.approx(expected)
    assert at(1.5, progress) == 1.5


def test_losses_are_added_with_the_weights_of_now(tmp_path: Path) -> None:
    losses = (spec.KL(0.9, temperature=spec.Ramp(4.0, 2.0)), spec.CE(spec.Ramp(0.0, 1.0)))
    student, teacher = tiny.bert(0, num_hidden_layers=2), tiny.bert(1)
    tokens, store = lesson(tmp_path, losses, student, teacher)
    (batch,) = micro_batches(tokens, np.arange(8), None, store, progress=0.5)
    found = Learner(student, losses, shape(teacher))(batch)
    signal = record(student, batch.inputs)
    kl = LOSSES[spec.KL](spec.KL(temperature=3.0), signal, batch.teacher, batch)
    ce = LOSSES[spec.CE](spec.CE(), signal, batch.teacher, batch)
    torch.testing.assert_close(found, 0.9 * kl + 0.5 * ce)


def test_every_kind_of_signal_reaches_its_loss_and_every_loss_the_student(tmp_path: Path) -> None:
    student, teacher = tiny.bert(0, num_hidden_layers=2, hidden_size=16, num_attention_heads=2), tiny.bert(1)
    tokens, store = lesson(tmp_path, ALL, student, teacher)
    module = Learner(student.train(), ALL, shape(teacher))
    (batch,) = micro_batches(tokens, np.arange(8), None, store)
    for value in module.values(record(student, batch.inputs, module.needs), batch):
        grads = torch.autograd.grad(value, list(student.parameters()), retain_graph=True, allow_unused=True)
        assert max(float(g.abs().max()) for g in grads if g is not None) > 0
    module(batch).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.own.parameters())


def test_micro_batches_of_whole_groups_add_up_under_all_losses_at_once(tmp_path: Path) -> None:
    student, teacher = tiny.bert(0, num_hidden_layers=2), tiny.bert(1)
    tokens, store = lesson(tmp_path, ALL, student, teacher)
    module, rows, found = Learner(student, ALL, shape(teacher)), np.arange(16), []
    for size in (None, 8, 4):
        module.zero_grad()
        for batch in micro_batches(tokens, rows, size, store):
            module(batch).backward()
        found.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-6)


def test_stored_signals_are_those_of_the_live_teacher(tmp_path: Path) -> None:
    teacher = tiny.bert(1)
    tokens, store = lesson(tmp_path, ALL, tiny.bert(0, num_hidden_layers=2), teacher)
    (batch,) = micro_batches(tokens, np.array([3, 30, 7]), None, store)
    with torch.no_grad():
        live = record(teacher, batch.inputs, store.needs)
    assert batch.teacher is not None and store.needs.attention and store.needs.pooled
    torch.testing.assert_close(batch.teacher.logits_BC, live.logits_BC, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.teacher.pooled_BH, live.pooled_BH, rtol=1e-4, atol=1e-5)
    mask = batch.inputs["attention_mask"].bool()
    for block, states in live.attention.items():
        for mine, theirs in zip(batch.teacher.attention[block], states, strict=True):
            torch.testing.assert_close(mine[mask].float(), theirs[mask], rtol=2e-3, atol=2e-3)  # float16


def test_recorded_queries_and_keys_make_the_models_own_attention() -> None:
    model = tiny.bert(0)
    ids = torch.tensor([[2, 40, 50, 3], [2, 41, 3, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        signal = record(model, {"input_ids": ids, "attention_mask": mask}, Needs(attention=(1, 4)))
        own = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    for block in (1, 4):
        q, k, _ = (x.reshape(2, 4, 4, 8).transpose(1, 2) for x in signal.attention[block])
        scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(mask[:, None, None] == 0, -1e9)
        torch.testing.assert_close(scores.softmax(-1), own[block - 1])


FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "electra": {"embedding_size": 32}, "mpnet": {}, "modernbert": {}, "deberta-v2": {},
    "albert": {"embedding_size": 16}, "llama": {}, "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_familys_blocks_are_recorded(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    common: dict[str, Any] = dict(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    options = (
        common if not ({"dim", "n_embd"} & {*FAMILIES[kind]}) else {"vocab_size": 64, "pad_token_id": 0}
    ) | FAMILIES[kind]
    config = AutoConfig.for_model(kind, **options)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.tensor([[1, 5, 6, 2]])
    with torch.no_grad():
        signal = record(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, Needs((0, 2), (1, 2), True))
    assert {x.shape for qkv in signal.attention.values() for x in qkv} == {(1, 4, 32)}
    assert not torch.equal(signal.attention[1][0], signal.attention[2][0])
    assert signal.heads == 2 and signal.hidden[2].shape == (1, 4, 32)


def test_a_model_without_known_attention_is_refused_by_name() -> None:
    with pytest.raises(TargetError, match="Sequential has no queries, keys and values known to edgekd"):
        projections(torch.nn.Sequential(torch.nn.Linear(2, 2)))


CONFIG = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}


@pytest.mark.parametrize(
    ("kind", "loss", "message"),
    [
        ("bert", spec.Relations(heads=3), "does not divide the 8 channels of the teacher"),
        ("fnet", spec.AttentionMaps(), "no queries, keys and values known"),
        ("squeezebert", spec.AttentionMaps(), "not one state for every token"),  # channels before tokens
        ("ibert", spec.AttentionMaps(), "not one state for every token"),  # pairs of states and scales
        ("canine", spec.HiddenMSE(), "not one state for every token"),  # fewer tokens within
    ],
)
def test_a_family_without_what_a_loss_looks_at_is_refused_by_its_configuration(
    kind: str, loss: Any, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        label_stage.check_signals(CONFIG | {"model_type": kind, "embedding_size": 8}, (spec.KL(), loss), "teacher")


def test_a_model_that_gives_no_hidden_states_is_refused_by_name() -> None:
    class Bare(torch.nn.Module):
        def forward(self, **given: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(1, 2))

    with pytest.raises(TargetError, match="Bare gives hidden states of 0 layers, and 3 are looked at"):
        record(Bare(), {"attention_mask": torch.ones(1, 4)}, Needs(hidden=(2,)))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_families_that_are_recorded_are_not_refused_beforehand(kind: str) -> None:
    losses = (spec.HiddenMSE(), spec.AttentionMaps(), spec.Relations(heads=2), spec.RKD())
    options = CONFIG | {"embedding_size": 8} if not ({"dim", "n_embd"} & {*FAMILIES[kind]}) else FAMILIES[kind]
    label_stage.check_signals({"model_type": kind, **options}, losses, "teacher")


def test_the_mean_leaves_padding_out_and_is_zero_over_nothing() -> None:
    states = torch.tensor([[[1.0], [3.0], [float("nan")]], [[9.0], [9.0], [9.0]]])
    assert mean(states, torch.tensor([[1, 1, 0], [0, 0, 0]])).tolist() == [[2.0], [0.0]]


def test_a_learned_temperature_starts_at_four_and_is_trained_against_the_student() -> None:
    own = Temperature()
    assert float(own(0.0)) == pytest.approx(4.0)
    own(1.0).backward()
    assert own.logit.grad is not None and own.logit.grad < 0  # reversed: T grows with the logit
    own.logit.grad = None
    own(0.0).backward()
    assert own.logit.grad == 0
    own.logit.data.fill_(1e3)
    assert float(own(0.5)) == pytest.approx(21.0)


def test_balanced_losses_have_gradients_in_proportion_to_their_weights(tmp_path: Path) -> None:
    losses = (spec.KL(1.0), spec.HiddenMSE(1.0), spec.CE(2.0))
    student, teacher = tiny.bert(0, num_hidden_layers=2), tiny.bert(1)
    tokens, store = lesson(tmp_path, losses, student, teacher)
    module = Learner(student.eval(), losses, shape(teacher), "gradients")  # dropout off
    module.training = True
    (batch,) = micro_batches(tokens, np.arange(16), None, store)
    module(batch)
    factors = module.factors()
    norms = []
    for value, factor, loss in zip(
        module.values(record(student, batch.inputs, module.needs), batch), factors, losses, strict=True
    ):
        grads = torch.autograd.grad(value, list(student.parameters()), retain_graph=True, allow_unused=True)
        norms.append(float(loss.weight * factor * torch.cat([g.flatten() for g in grads if g is not None]).norm()))
    assert norms == pytest.approx([norms[0], norms[0], 2 * norms[0]], rel=1e-4)


def test_balanced_losses_hear_a_whole_step_however_it_is_divided(tmp_path: Path) -> None:
    losses, teacher, found = (spec.KL(1.0), spec.HiddenMSE(1.0), spec.CE(2.0)), tiny.bert(1), []
    tokens, store = lesson(tmp_path, losses, tiny.bert(0, num_hidden_layers=2), teacher)
    for size in (None, 5):
        torch.manual_seed(0)  # projections
        module = Learner(tiny.bert(0, num_hidden_layers=2), losses, shape(teacher), "gradients")
        module.training = True  # dropout off
        for rows in (np.arange(16), np.arange(16, 32)):
            module.zero_grad()
            for batch in micro_batches(tokens, rows, size, store):
                module(batch).backward()
        assert module.steps == 2 and (module.factors() - 1).abs().max() > 0.1
        found.append([module.norms, *(p.grad for p in module.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_balanced_training_that_is_killed_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(learner, "BALANCE_EVERY", 3)
    losses, found = (spec.KL(1.0, temperature="learned"), spec.HiddenMSE(1.0)), []
    for kill in (False, True):
        torch.manual_seed(0)  # projections
        student, teacher = tiny.bert(0, num_hidden_layers=2), tiny.bert(1)
        (out := tmp_path / str(kill)).mkdir()
        tokens, store = lesson(out, losses, student, teacher)
        module = Learner(student, losses, shape(teacher), "gradients")
        before = {"hook": lambda step, last: None}

        def die(step: int, last: int) -> None:
            if step == 7:
                raise KeyboardInterrupt

        task = loop.Task(
            "t", module, tokens, store, lambda: {"score": 0.0}, before_step=lambda s, n, b=before: b["hook"](s, n)
        )
        options: dict[str, Any] = dict(
            epochs=2, options=spec.Optimizer(batch_size=8), seed=0, out=out, progress=QUIET
        )  # fmt: skip
        if kill:
            before["hook"] = die
            with pytest.raises(KeyboardInterrupt):
                loop.fit(task, **options)
            before["hook"] = lambda step, last: None
        loop.fit(task, **options)
        found.append({name: value.clone() for name, value in module.state_dict().items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (spec.Relations(heads=3), "does not divide the 32 channels of the student"),
        (spec.HiddenMSE(layers=((3, 1),)), r"HiddenMSE: layer map pair \(3, 1\) is out of range"),
        (spec.AttentionMaps(layers=((0, 1),)), "layer 0, the embeddings, has no attention"),
    ],
)
def test_a_loss_that_the_models_do_not_fit_is_refused_by_name(loss: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Learner(tiny.bert(0, num_hidden_layers=2), (spec.KL(), loss), shape(tiny.bert(1)))


def test_what_the_student_needs_is_its_own_side_of_the_pairs() -> None:
    losses = (spec.HiddenMSE(layers="last"), spec.EmbeddingMSE(), spec.Relations(), spec.RKD())
    assert needs(losses, 2, 4, 0) == Needs((0, 1, 2), (2,), True)
    assert needs(losses, 2, 4, 1) == Needs((0, 3, 4), (4,), True)
    wanted = taps(spec.Distill(losses=losses), spec.Student(layers=2))
    assert wanted == ("logits", "attention:final/2", "hidden:0", "hidden:last/2", "pooled")
    assert stored(wanted, 4, 3) == needs(losses, 2, 4, 1)


def test_a_loss_without_a_gradient_is_not_made_loud_by_the_balance(tmp_path: Path) -> None:
    student, teacher = tiny.bert(0, num_hidden_layers=2), tiny.bert(1)
    losses = (spec.KL(), spec.CE())
    tokens, store = lesson(tmp_path, losses, student, teacher)
    module = Learner(student.train(), losses, shape(teacher), "gradients")
    (batch,) = micro_batches(tokens, np.arange(8), None, store)
    unlabelled = dataclasses.replace(batch, labels_B=torch.full_like(batch.labels_B, -1))
    silent = module(unlabelled)
    torch.testing.assert_close(module.factors(), torch.ones(2))
    torch.testing.assert_close(silent, module.values(record(student, batch.inputs), batch)[0])
    module.steps.zero_()
    module(batch)
    factors, norms = module.factors(), module.norms
    assert (norms > 0).all() and factors.max() < 1000
    torch.testing.assert_close(factors * norms, norms.mean().expand(2))
