"""Claims about teachers that answer while the student learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_target
import torch
from safetensors.torch import load_file

from edgekd import catalog, pipeline, spec
from edgekd.distill import labels, live, loop
from edgekd.distill.checkpoint import save_tensors
from edgekd.distill.data import Tokens, micro_batches
from edgekd.distill.learner import Learner
from edgekd.distill.losses import LOSSES
from edgekd.distill.record import record, shape
from edgekd.distill.taps import Needs
from edgekd.errors import TargetError
from edgekd.models import exits
from edgekd.models.vocabulary import trim
from edgekd.progress import Progress
from edgekd.stages import distill as distill_stage
from edgekd.stages.common import answering, read_data
from edgekd.store import Stage, read_json

QUIET, CPU = Progress(quiet=True), torch.device("cpu")
NEEDS = Needs(hidden=(0, 2), attention=(4,), pooled=True)
ROWS = np.array([3, 30, 7, 12])


def test_a_live_teacher_answers_as_its_store_does_also_another_tokenizer(tmp_path: Path) -> None:
    part, teacher = tiny.split(40, 0), tiny.bert(1)
    own = tiny.tokens(part)
    labels.compute(tmp_path, "train", own, teacher, NEEDS, CPU, QUIET)
    small, _ = trim(tiny.wordpiece(), part.texts, 70)
    for tokens in (own, tiny.tokens(part, max_length=64, tokenizer=small)):
        (stored,) = micro_batches(tokens, ROWS, None, labels.LabelStore(tmp_path, "train", NEEDS, 4))
        (asked,) = micro_batches(tokens, ROWS, None, live.LiveTeacher(teacher, own, NEEDS, CPU))
        assert stored.teacher is not None and asked.teacher is not None
        torch.testing.assert_close(stored.teacher.logits_BC, asked.teacher.logits_BC, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stored.teacher.pooled_BH, asked.teacher.pooled_BH, rtol=1e-4, atol=1e-5)
        assert asked.teacher.heads == stored.teacher.heads == 4
        mask = stored.inputs["attention_mask"].bool()
        both = [(stored.teacher.hidden[n], asked.teacher.hidden[n]) for n in NEEDS.hidden]
        both += list(zip(stored.teacher.attention[4], asked.teacher.attention[4], strict=True))
        for one, other in both:
            torch.testing.assert_close(one[mask].float(), other[mask].float(), rtol=2e-3, atol=2e-3)  # float16


def learner(seed: int, losses: tuple[Any, ...] = (spec.KL(), spec.CE())) -> Learner:
    student = tiny.bert(seed, num_hidden_layers=2)
    return Learner(student, losses, shape(student))


def test_an_average_follows_its_student_and_teaches_it() -> None:
    taught = live.SelfTaught(learner(0), decay=0.9)
    weight = taught.learner.model.classifier.weight
    first = weight.detach().clone()
    expected = first.double()
    for step in range(4):
        with torch.no_grad():
            weight.copy_(first * (step + 1))
        taught.follow()
        expected = first.double() if step == 0 else 0.9 * expected + 0.1 * weight.detach().double()
    torch.testing.assert_close(taught.average.classifier.weight, expected.float())
    tokens = tiny.tokens(tiny.split(20, 0))
    (batch,) = micro_batches(tokens, np.arange(4), None, None)
    signal = record(taught.average, batch.inputs)
    expected_loss = sum(
        LOSSES[type(o)](o, record(taught.learner.model, batch.inputs), signal, batch) for o in taught.learner.losses
    )
    loss = taught(batch)
    torch.testing.assert_close(loss, expected_loss)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in taught.average.parameters())


def test_a_cohorts_members_learn_from_the_mean_of_the_others_and_teach_without_a_gradient() -> None:
    cohort = live.Cohort([learner(seed) for seed in range(3)])
    tokens = tiny.tokens(tiny.split(20, 0))
    (batch,) = micro_batches(tokens, np.arange(4), None, None)
    logits = [record(member.model, batch.inputs).logits_BC.detach().double() for member in cohort.learners]
    expected = 0.0
    for i, own in enumerate(logits):
        p = torch.stack([x.softmax(-1) for j, x in enumerate(logits) if j != i]).mean(0)
        expected += float((p * (p.log() - own.log_softmax(-1))).sum(-1).mean())
        expected += float(torch.nn.functional.cross_entropy(own, batch.labels_B))
    assert cohort(batch).item() == pytest.approx(expected, rel=1e-5)
    alone = learner(0)
    others = [live.Signal(x.float()) for x in logits[1:]]
    alone(batch.by(live.mean(others))).backward()
    cohort(batch).backward()
    first: Any = cohort.learners[0]
    for mine, theirs in zip(alone.model.parameters(), first.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def with_teacher(part: Any, teacher: Any) -> tuple[live.Cohort, Tokens, live.LiveTeacher]:
    """A student of fewer words and layers, and its teacher, who learn together; the student's tokens, who asks."""
    torch.manual_seed(0)  # projections
    small, _ = trim(tiny.wordpiece(), part.texts, 70)
    losses = (spec.KL(temperature=2.0), spec.CE(), spec.HiddenMSE(layers=((2, 4),)))
    first = Learner(tiny.bert(0, num_hidden_layers=2), losses, shape(teacher))
    asked = live.LiveTeacher(teacher, tiny.tokens(part), Needs(hidden=(4,)), CPU, learns=True)
    cohort = live.Cohort([first, Learner(teacher, (spec.CE(), spec.KL()))])
    return cohort, tiny.tokens(part, tokenizer=small), asked


def test_a_teacher_learns_beside_its_student_and_neither_gets_a_gradient_from_the_others_loss() -> None:
    part, teacher = tiny.split(40, 0), tiny.bert(1)
    cohort, tokens, asked = with_teacher(part, teacher)
    for batch in micro_batches(tokens, ROWS, 3, asked):
        cohort(batch).backward()
    assert [type(p.grad) for p in cohort.parameters()].count(type(None)) == 0
    alone: Any = with_teacher(part, tiny.bert(1))[0].learners[0]
    stored = live.LiveTeacher(tiny.bert(1), tiny.tokens(part), Needs(hidden=(4,)), CPU)
    (batch,) = micro_batches(tokens, ROWS, None, stored)
    alone(batch).backward()
    first: Any = cohort.learners[0]
    for mine, expected in zip(first.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6)
    again, said = tiny.bert(1).double(), first.model(**batch.inputs).logits.detach().double()
    (its_own,) = micro_batches(tiny.tokens(part), ROWS, None)
    log_q, p = again(**its_own.inputs).logits.log_softmax(-1), said.softmax(-1)
    (-log_q[range(4), its_own.labels_B].mean() + (p * (p.log() - log_q)).sum(-1).mean()).backward()
    for mine, expected in zip(teacher.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["average", "teacher", "deeper layers"])
def test_a_training_with_a_teacher_that_moves_is_killed_and_ends_in_the_same_bytes(kind: str, tmp_path: Path) -> None:
    found = []
    for kill in (False, True):
        (out := tmp_path / str(kill)).mkdir()
        taught: Any = live.SelfTaught(learner(0), decay=0.9)
        tokens, asked = tiny.tokens(tiny.split(40, 0)), None
        if kind == "teacher":
            taught, tokens, asked = with_teacher(tiny.split(40, 0), tiny.bert(1))
        if kind == "deeper layers":
            whole = tiny.bert(0, num_hidden_layers=2)
            shipped = exits.shallower(whole, 1)
            taught = Learner(whole, (spec.CE(), spec.Exits()), shape(whole), shipped=shipped)
        dies = [kill]

        def before(step: int, last: int, taught: Any = taught, dies: list[bool] = dies) -> None:
            if step == 7 and dies.pop():
                raise KeyboardInterrupt
            if kind == "average":
                taught.follow()

        rates = [(asked.model, 1e-4)] if asked is not None else []
        task = loop.Task("t", taught, tokens, asked, lambda: {"score": 0.0}, before, rates=rates)
        options: dict[str, Any] = dict(epochs=2, options=spec.Optimizer(batch_size=8), seed=0, out=out, progress=QUIET)
        if kill:
            with pytest.raises(KeyboardInterrupt):
                loop.fit(task, **options)
        dies[:] = [False]
        loop.fit(task, **options)
        found.append({name: value.clone() for name, value in taught.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


ANSWERS = (spec.KL(1.0, temperature=2.0), spec.CE(0.5))
SOURCES = {
    "live": (spec.Live(), (*ANSWERS, spec.HiddenMSE(0.1), spec.Relations(0.1, heads=1))),
    "average": (spec.Average(0.9), (*ANSWERS, spec.HiddenMSE(0.1))),
    "mutual": (spec.Mutual(2), (*ANSWERS, spec.HiddenMSE(0.1))),
}


LEARNERS = {"live": {""}, "average": {"learner."}, "mutual": {"learners.0.", "learners.1."}}
"""Whose losses learn something themselves."""


@pytest.mark.parametrize("kind", SOURCES)
def test_the_line_runs_through_distillation_and_quantization_with_every_source(kind: str, folder: Path) -> None:
    path = tiny_target.write(folder, epochs=8)
    base = catalog.load(str(path))
    source, losses = SOURCES[kind]
    target = dataclasses.replace(base, distill=dataclasses.replace(base.distill, source=source, losses=losses))
    done = pipeline.run(target, folder=folder / "runs", beside=path, to="quantize")["stages"]
    stages = {name: Path(entry["folder"]) for name, entry in done.items()}
    assert not list(stages["labels"].glob("taught.*"))  # nobody asks for what nobody reads
    scores = read_json(stages["quantize"] / "scores.json")
    assert read_json(stages["distill"] / "scores.json")["validation"]["score"] > 0.5
    assert scores["qad"]["score"] > 0.5 and scores["training"]["steps"] > 0
    assert len(list(stages["distill"].glob("peer-*"))) == (kind == "mutual")
    learned = load_file(stages["distill"] / "learned.safetensors")
    assert {name.partition("own")[0] for name in learned} == LEARNERS[kind]


def test_what_the_losses_of_peers_learned_goes_on_in_quantization(tmp_path: Path) -> None:
    losses, shape = (spec.KL(), spec.HiddenMSE(0.1)), {"layers": 4, "hidden": 32, "heads": 4}
    first, second = (live.Cohort([Learner(tiny.bert(seed + i), losses, shape) for i in (0, 1)]) for seed in (0, 7))
    with torch.no_grad():
        for i, member in enumerate(first.learners, 1):
            for weight in member.own.parameters():
                weight += i
    learned = distill_stage.learned_beside(first)
    assert {name.partition(".own")[0] for name in learned} == {"learners.0", "learners.1"}
    save_tensors(learned, tmp_path / distill_stage.LEARNED)
    before = {name: value.clone() for name, value in second.state_dict().items()}
    distill_stage.load_learned(second, Stage("distill", "0", tmp_path))
    for name, value in second.state_dict().items():
        assert torch.equal(value, learned.get(name, before[name]))
    assert not any(torch.equal(before[name], value) for name, value in learned.items())


def test_a_learning_teacher_is_kept_by_distillation_and_goes_on_in_quantization(folder: Path) -> None:
    path = tiny_target.write(folder, epochs=8)
    base = catalog.load(str(path))
    losses = (*ANSWERS, spec.HiddenMSE(0.1), spec.Exits(at=(1,)))
    taught = spec.Distill(source=spec.Mutual(1, teacher=True), losses=losses, epochs=1)
    target = dataclasses.replace(base, distill=taught, quant=dataclasses.replace(base.quant, epochs=1))
    done = pipeline.run(target, folder=folder / "runs", beside=path, to="quantize")["stages"]
    stages = {name: Stage(name, entry["key"], Path(entry["folder"])) for name, entry in done.items()}
    learned = stages["distill"].path / "teacher.safetensors"
    before, after = load_file(stages["teacher"].path / "model" / "model.safetensors"), load_file(learned)
    moved = max(float((after[name] - tensor).abs().max()) for name, tensor in before.items())
    assert 0 < moved < 6 * 5e-5  # six steps, each of its own rate at most
    model, _ = answering(stages["teacher"], read_data(target.task, stages["assets"]), learned)
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())
    assert read_json(stages["quantize"].path / "scores.json")["training"]["steps"] > 0


def test_both_stages_teach_on_the_same_chosen_examples(folder: Path) -> None:
    path = tiny_target.write(folder, epochs=8)
    base = catalog.load(str(path))
    target = dataclasses.replace(base, distill=dataclasses.replace(base.distill, select=spec.Select("gap", 0.25)))
    done = pipeline.run(target, folder=folder / "runs", beside=path, to="quantize")["stages"]
    rows = np.load(Path(done["distill"]["folder"]) / "rows.npy")
    taught = len(labels.LabelStore(Path(done["labels"]["folder"]), "taught").logits)
    assert len(rows) == round(0.25 * taught) and len(set(rows.tolist())) == len(rows)
    for stage, epochs in (("distill", 8), ("quantize", 2)):
        found = read_json(Path(done[stage]["folder"]) / "scores.json")["training"]
        assert found["steps"] == epochs * -(-len(rows) // 16)


def test_nobody_is_left_for_assistants_to_teach_where_the_teacher_answers_live(folder: Path) -> None:
    base = catalog.load(str(tiny_target.write(folder, epochs=2)))
    with pytest.raises(TargetError, match=r"distill\.source Live leaves nothing for assistants"):
        dataclasses.replace(
            base, assistants=(spec.Student(layers=3),), distill=dataclasses.replace(base.distill, source=spec.Live())
        )


@pytest.mark.parametrize("source", ["average", "cohort"])
def test_students_answer_at_the_layers_that_explicit_pairs_name(source: str) -> None:
    losses = (spec.HiddenMSE(layers=((1, 2),)), spec.Relations(heads=2, layers=((1, 2),)))
    taught = (
        live.SelfTaught(learner(0, losses), 0.9)
        if source == "average"
        else live.Cohort([learner(0, losses), learner(1, losses)])
    )
    if isinstance(taught, live.SelfTaught):
        taught.follow()
    (batch,) = micro_batches(tiny.tokens(tiny.split(8, 0)), np.arange(8), None)
    loss = taught(batch)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0


def test_peers_cut_from_one_teacher_differ_from_the_student() -> None:
    model, peer = tiny.bert(0), distill_stage.differing(tiny.bert(0), seed=1000)
    (batch,) = micro_batches(tiny.tokens(tiny.split(8, 0)), np.arange(8), None)
    with torch.no_grad():
        own, other = (record(m.eval(), batch.inputs).logits_BC for m in (model, peer))
    for mine, theirs in zip(model.parameters(), peer.parameters(), strict=True):
        assert torch.equal(mine, theirs) == (mine.ndim == 1)
        if mine.ndim > 1:
            assert 0.05 < float(((theirs - mine).std() / mine.std()).detach()) < 0.15
    assert (own - other).abs().max() > 1e-3
