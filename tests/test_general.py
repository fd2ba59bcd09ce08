"""Claims about the whole line with text from elsewhere, changed copies and a time before the task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_target
import torch
from safetensors.torch import load_file

from edgekd import catalog, pipeline, spec
from edgekd.distill import evaluate, labels
from edgekd.distill.learner import Learner
from edgekd.distill.record import shape
from edgekd.distill.taps import Needs
from edgekd.progress import Progress
from edgekd.store import read_json
from edgekd.tasks import text_classification
from edgekd.tasks.examples import UNLABELLED

STEPS = (
    *("assets", "transfer", "transfer_general", "teacher", "augment", "backbone", "labels_general", "distill_general"),
    *("labels", "distill", "quantize"),
)
GENERAL = spec.General(
    losses=(spec.Relations(0.5, heads=1), spec.HiddenMSE(1.0, layers="final")),
    epochs=3,
    optimizer=spec.Optimizer(learning_rate=3e-3, batch_size=16),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("general")


@pytest.fixture(scope="module")
def target(folder: Path) -> spec.Target:
    base = catalog.load(str(tiny_target.write(folder, epochs=1)))
    for name, seed in (("more", 7), ("general", 8)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"body": text}) + "\n" for text in tiny.split(30, seed).texts)
        )
    task = dataclasses.replace(base.task, transfer=f"file:{folder}/more.jsonl", transfer_column="body", limit=64)
    general = dataclasses.replace(GENERAL, text=f"file:{folder}/general.jsonl")
    distill = dataclasses.replace(base.distill, augment=spec.Augment(neighbours=3), general=general)
    quant = dataclasses.replace(base.quant, epochs=0.5)
    return dataclasses.replace(base, task=task, distill=distill, quant=quant)


def walk(target: spec.Target, folder: Path, to: str) -> dict[str, Any]:
    return dict(pipeline.run(target, folder=folder / "runs", beside=folder / "tiny_line.py", to=to)["stages"])


@pytest.fixture(scope="module")
def done(target: spec.Target, folder: Path) -> dict[str, Any]:
    return walk(target, folder, "quantize")


def path(done: dict[str, Any], name: str) -> Path:
    return Path(done[name]["folder"])


def weights(done: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    return dict(load_file(path(done, name) / "model/model.safetensors"))


def test_what_is_taught_is_the_same_in_labels_distillation_and_quantization(done: dict[str, Any]) -> None:
    assert tuple(done) == STEPS
    data = text_classification.read(path(done, "augment"))
    assert data.transfer is not None
    kinds = ["copy" if "#copy" in n else "window" if "#" in n else "text" for n in data.transfer.ids]
    assert kinds == sorted(kinds, key=("window", "text", "copy").index) and len(set(kinds)) == 3
    assert kinds.count("copy") > 0.9 * len(data.train)
    assert set(data.transfer.labels.tolist()) == {UNLABELLED}
    assert not {*data.transfer.texts} & {*data.validation.texts, *data.test.texts}
    assert len(labels.LabelStore(path(done, "labels"), "taught").logits) == len(data.taught)
    for name, epochs in (("distill", 1), ("quantize", 0.5)):
        training = read_json(path(done, name) / "scores.json")["training"]
        assert training["steps"] == round(epochs * -(-len(data.taught) // 16)) > 0


def test_the_student_first_learns_from_the_backbone_as_it_came(folder: Path, done: dict[str, Any]) -> None:
    source = load_file(folder / "teacher/model.safetensors")
    raw, tuned = weights(done, "backbone"), weights(done, "teacher")
    body = [name for name in raw if name.startswith("bert.") and "pooler" not in name]
    assert all(torch.equal(raw[name], source[name]) for name in body)
    assert not any(torch.equal(tuned[name], source[name]) for name in body if name.endswith("dense.weight"))
    said = text_classification.read(path(done, "transfer_general")).taught.ids
    assert {name.partition("/")[0] for name in said} == {"train", "transfer"} and not any("#" in name for name in said)
    history = [json.loads(line) for line in (path(done, "distill_general") / "history.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in history]
    assert len(losses) == 3 and min(losses) < 0.95 * losses[0]
    for name, judging in (("labels_general", True), ("labels", False)):  # where the losses judge, they are told enough
        assert [(path(done, name) / f"validation.{of}.4.npy").exists() for of in ("hidden", "query")] == [judging] * 2
    kept = read_json(path(done, "distill_general") / "scores.json")
    assert kept["validation"]["validation_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert kept["training"]["best"]["validation_loss"] == min(losses)


def test_the_task_begins_with_exactly_the_weights_that_the_time_before_it_ended_with(
    target: spec.Target, folder: Path, done: dict[str, Any]
) -> None:
    still = dataclasses.replace(target.distill, epochs=0.1, optimizer=spec.Optimizer(learning_rate=1e-30))
    again = walk(dataclasses.replace(target, distill=still), folder, "distill")
    assert {name for name in again if again[name]["action"] == "run"} == {"distill"}
    before, after = weights(done, "distill_general"), weights(again, "distill")
    torch.testing.assert_close(after, before, rtol=0, atol=1e-20)  # the steps are of 1e-30
    for name in ("tokenizer.json", "config.json"):
        assert read_json(path(again, "distill") / "model" / name) == read_json(
            path(done, "distill_general") / "model" / name
        )
    assert read_json(path(again, "distill") / "student.json") == read_json(
        path(done, "distill_general") / "student.json"
    )
    taught = weights(done, "distill")
    assert not any(torch.equal(before[name], taught[name]) for name in before if name.endswith("dense.weight"))


def test_the_loss_that_judges_is_that_of_the_whole_split_at_once(tmp_path: Path) -> None:
    teacher, student = tiny.bert(1), tiny.bert(2, num_hidden_layers=2, hidden_size=16)
    tokens = tiny.tokens(tiny.split(40, 0))
    needs = Needs(hidden=(4,))
    labels.compute(tmp_path, "validation", tokens, teacher, needs, torch.device("cpu"), Progress(quiet=True))
    losses = (spec.HiddenMSE(spec.Ramp(0.0, 2.0), layers="final"),)
    learner = Learner(student, losses, shape(teacher)).train()
    found = evaluate.loss(learner, tokens, labels.LabelStore(tmp_path, "validation", needs, 4), batch_size=16)
    assert learner.training
    project: Any = learner.own[0].project[0]
    w, b = (x.detach().double().numpy() for x in (project.weight, project.bias))
    total = 0.0
    for i in range(len(tokens)):  # one by one, so that nothing is padded
        ids = torch.from_numpy(tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].astype(np.int64))[None]
        with torch.no_grad():
            s, t = (
                m.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].double().numpy()
                for m in (student, teacher)
            )
        total += ((s @ w.T + b - t) ** 2).mean(-1).sum()
    assert found == pytest.approx(2.0 * total / len(tokens.ids), rel=1e-3)  # states are stored in float16
