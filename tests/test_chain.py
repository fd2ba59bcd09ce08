"""Claims about teachers between the teacher and the student: assistants, and earlier generations of the student."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_target

from edgekd import catalog, pipeline, spec, store
from edgekd.distill import evaluate
from edgekd.distill.labels import LabelStore
from edgekd.errors import TargetError, UsageError
from edgekd.stages.common import answering, load_stage_model, read_data, tokenise_splits

ASSISTANT = spec.Student(layers=3, hidden=24, heads=4, max_length=14, positions=20)
CHAIN = ("assets", "transfer", "teacher", "labels", "distill_1", "labels_1", "distill_2", "labels_2", "distill")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def target(folder: Path) -> spec.Target:
    found = catalog.load(str(tiny_target.write(folder, epochs=4)))
    return dataclasses.replace(
        found,
        task=dataclasses.replace(found.task, max_length=12),
        assistants=(ASSISTANT,),
        student=dataclasses.replace(found.student, max_length=20),
        distill=dataclasses.replace(found.distill, generations=2),
    )


def walk(target: spec.Target, folder: Path, **options: Any) -> dict[str, Any]:
    found = pipeline.run(target, folder=folder / "runs", beside=folder / "tiny_line.py", **options)
    return dict(found["stages"])


@pytest.fixture(scope="module")
def done(target: spec.Target, folder: Path) -> dict[str, Any]:
    return walk(target, folder, to="export")


def stage(done: dict[str, Any], name: str) -> store.Stage:
    path = Path(done[name]["folder"])
    return store.Stage(path.name.partition("-")[0], done[name]["key"], path)


def test_every_learner_has_its_stages_in_order(done: dict[str, Any]) -> None:
    assert tuple(done) == (*CHAIN, "quantize", "export")
    config = {
        name: store.read_json(Path(done[name]["folder"]) / "model/config.json")
        for name in done
        if name.startswith("distill")
    }
    sizes = {name: (c["num_hidden_layers"], c["hidden_size"]) for name, c in config.items()}
    assert sizes == {"distill_1": (3, 24), "distill_2": (2, 16), "distill": (2, 16)}


@pytest.mark.parametrize(
    ("labels", "by"), [("labels", "teacher"), ("labels_1", "distill_1"), ("labels_2", "distill_2")]
)
def test_each_learner_is_taught_what_the_one_before_it_answers(
    target: spec.Target, done: dict[str, Any], labels: str, by: str
) -> None:
    data = read_data(target.task, stage(done, "transfer"))
    model, tokenizer = load_stage_model(stage(done, by), data.labels)
    longest = {"teacher": 12, "distill_1": 14, "distill_2": 20}[by]
    tokens = tokenise_splits(tokenizer, data, longest, ("taught",))["taught"]
    assert tokens.lengths.max() == longest
    stored = LabelStore(Path(done[labels]["folder"]), "taught").logits
    np.testing.assert_allclose(stored, evaluate.logits(model, tokens), rtol=2e-2, atol=1e-2)  # bf16
    learner = {"labels": "distill_1", "labels_1": "distill_2", "labels_2": "distill"}[labels]
    inputs = store.read_json(Path(done[learner]["folder"]) / store.MANIFEST)["inputs"]
    assert inputs["labels"] == done[labels]["key"]
    assert inputs["teacher"] == done["teacher" if learner == "distill_1" else "distill_1"]["key"]  # whom it is cut from


def test_students_may_read_more_tokens_than_their_teacher_who_goes_on_reading_its_own(done: dict[str, Any]) -> None:
    lengths = {}
    for who in ("teacher", "student"):
        with np.load(Path(done["export"]["folder"]) / "inputs" / f"{who}.npz") as split:
            lengths[who] = int(np.diff(split["offsets"]).max())
    assert lengths == {"teacher": 12, "student": 20}
    data = read_data(spec.TextClassification(train=""), stage(done, "transfer"))
    assert answering(stage(done, "teacher"), data)[1].lengths.max() == 12
    assert answering(stage(done, "distill_1"), data)[1].lengths.max() == 14
    assert 0.9 < store.read_json(Path(done["export"]["folder"]) / "read.json")["text_read"] < 1


def test_a_step_in_the_middle_can_be_done_anew_and_only_what_follows_is(
    target: spec.Target, folder: Path, done: dict[str, Any]
) -> None:
    again = walk(target, folder, to="distill", fresh="distill_2")
    assert [name for name in again if again[name]["action"] == "run"] == ["distill_2", "labels_2", "distill"]
    with pytest.raises(UsageError, match=r"there is no stage 'distill_3'; the stages are assets, .*labels_2, distill"):
        walk(target, folder, to="distill_3")


def test_an_assistant_that_does_not_fit_is_refused_before_anything_is_trained(
    target: spec.Target, folder: Path
) -> None:
    deep = dataclasses.replace(target, assistants=(dataclasses.replace(ASSISTANT, layers=9),))
    with pytest.raises(TargetError, match="9"):
        walk(deep, folder, to="distill")
    with pytest.raises(TargetError, match=r"assistants\[0\].hidden 10 is not divisible by assistants\[0\].heads 4"):
        dataclasses.replace(target, assistants=(dataclasses.replace(ASSISTANT, hidden=10),))
