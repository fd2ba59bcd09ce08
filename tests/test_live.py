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

from edgekd import catalog, pipeline, spec
from edgekd.distill import labels, live, loop
from edgekd.distill.data import micro_batches
from edgekd.distill.learner import Learner
from edgekd.distill.losses import LOSSES
from edgekd.distill.record import record, shape
from edgekd.distill.taps import Needs
from edgekd.errors import TargetError
from edgekd.models.vocabulary import trim
from edgekd.progress import Progress
from edgekd.store import read_json

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
        mask = stored.mask_BT
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


def test_a_self_taught_training_that_is_killed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for kill in (False, True):
        (out := tmp_path / str(kill)).mkdir()
        taught = live.SelfTaught(learner(0), decay=0.9)
        dies = [kill]

        def before(step: int, last: int, taught: Any = taught, dies: list[bool] = dies) -> None:
            if step == 7 and dies.pop():
                raise KeyboardInterrupt
            taught.follow()

        task = loop.Task("t", taught, tiny.tokens(tiny.split(40, 0)), None, lambda: {"score": 0.0}, before)
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
    "mutual": (spec.Mutual(2), ANSWERS),
}


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
