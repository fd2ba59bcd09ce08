"""Claims about several teachers: how their answers become one, and who of several answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_target
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from edgekd import catalog, pipeline, spec, store
from edgekd.distill import evaluate, labels, several
from edgekd.distill.data import micro_batches
from edgekd.distill.labels import LabelStore
from edgekd.distill.signal import Signal
from edgekd.distill.taps import Needs
from edgekd.errors import DataError, TargetError
from edgekd.models import loading
from edgekd.progress import Progress
from edgekd.runner import After
from edgekd.stages import labels as labels_stage
from edgekd.stages.common import load_stage_model, read_data, tokenise_splits

WEIGHTS = (1.0, 2.0, 5.0)


def softmax(logits: Any) -> Any:
    e = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(method: str, p_KC: Any) -> Any:
    """The weights of one example's teachers, by the definitions, before they are made to add up to 1."""
    if method == "confidence":
        return [1 + sum(x * np.log(x) for x in p) / np.log(len(p)) for p in p_KC]
    if method == "agreement":
        tops = [int(np.argmax(p)) for p in p_KC]
        most = max(Counter(tops).values())
        winner = next(top for top in tops if tops.count(top) == most)
        return [float(top == winner) for top in tops]
    return WEIGHTS if method == "weights" else [1.0] * len(p_KC)


@pytest.mark.parametrize("method", ["mean", "weights", "confidence", "agreement"])
def test_answers_are_combined_as_the_formula_says(method: Any) -> None:
    logits_KBC = np.random.default_rng(0).normal(scale=2, size=(3, 40, 4)).astype(np.float32)
    combine = spec.Combine(method, WEIGHTS if method == "weights" else ())
    states = torch.ones(40, 2, 8)
    signals = [Signal(torch.from_numpy(x), {1: states * k}) for k, x in enumerate(logits_KBC)]
    found = several.together(signals, combine)
    p_KBC = softmax(logits_KBC)
    for b in range(40):
        w = np.array(reference(method, p_KBC[:, b]))
        expected = (w[:, None] * p_KBC[:, b]).sum(0) / w.sum()
        np.testing.assert_allclose(found.logits_BC[b].double().exp(), expected, rtol=1e-5, atol=1e-7)
    assert found.hidden[1] is signals[0].hidden[1], "what belongs to tokens is the first teacher's"


def test_who_is_sure_counts_for_all_where_the_others_know_nothing_and_all_alike_where_nobody_knows() -> None:
    sure, unsure = [30.0, 0.0, 0.0], [2.0, 2.0, 2.0]
    half = [0.0, 0.0, -1e4]  # entropy ln 2 of ln 3 at most
    logits_KBC = torch.tensor([[sure, unsure, sure, half], [unsure, unsure, sure, sure]])
    found = several.weights(spec.Combine("confidence"), logits_KBC)
    share = 1 - np.log(2) / np.log(3)
    expected = [[1, 0.5, 0.5, share / (1 + share)], [0, 0.5, 0.5, 1 / (1 + share)]]
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("tops", "counted"),
    [
        ((0, 0), (1, 1)),
        ((1, 0), (1, 0)),  # two that disagree: the first alone
        ((2, 1, 1), (0, 1, 1)),
        ((2, 1, 0), (1, 0, 0)),
        ((2, 1, 1, 2), (1, 0, 0, 1)),  # as many each: those that answer like the earliest of them
        ((0, 2, 1, 1, 2), (0, 1, 0, 0, 1)),
    ],
)
def test_whoever_disagrees_with_most_does_not_count(tops: tuple[int, ...], counted: tuple[int, ...]) -> None:
    logits_K1C = torch.nn.functional.one_hot(torch.tensor(tops), 3).unsqueeze(1).float()
    found = several.weights(spec.Combine("agreement"), logits_K1C)
    np.testing.assert_allclose(found[:, 0], np.array(counted) / sum(counted))


def test_extreme_answers_stay_finite() -> None:
    signals = [Signal(torch.tensor([[1e4, -1e4, 0.0]])), Signal(torch.tensor([[-1e4, 1e4, 0.0]]))]
    for method in ("mean", "confidence", "agreement"):
        assert several.together(signals, spec.Combine(method)).logits_BC.isfinite().all()


def test_stores_of_other_tokenizers_and_widths_are_read_as_one(tmp_path: Path) -> None:
    part, combine = tiny.split(40, 0), spec.Combine("weights", (1.0, 3.0))
    tokens, cpu, quiet = tiny.tokens(part), torch.device("cpu"), Progress(quiet=True)
    needs = Needs(hidden=(2,), top=2)
    for folder, model, own, wanted in (
        (tmp_path / "a", tiny.bert(1), tokens, needs),
        (tmp_path / "b", other(), tiny.tokens(part, tokenizer=words()), Needs(top=2)),
    ):
        folder.mkdir()
        labels.compute(folder, "taught", own, model, wanted, cpu, quiet)
    both = several.read([tmp_path / "a", tmp_path / "b"], "taught", combine, needs, 4, 3)
    first = several.read([tmp_path / "a"], "taught", combine, needs, 4, 3)
    assert isinstance(first, LabelStore)
    rows = np.array([3, 30, 7, 12])
    (together,), (alone,) = (micro_batches(tokens, rows, None, found) for found in (both, first))
    assert together.teacher is not None and alone.teacher is not None
    torch.testing.assert_close(together.teacher.hidden[2], alone.teacher.hidden[2])
    p, q = (
        softmax(evaluate.logits(tiny.bert(1), tokens)),
        softmax(evaluate.logits(other(), tiny.tokens(part, tokenizer=words()))),
    )
    np.testing.assert_allclose(together.teacher.logits_BC.exp(), (0.25 * p + 0.75 * q)[rows], rtol=1e-4)
    np.testing.assert_allclose(both.all_logits()[rows], together.teacher.logits_BC, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- the line


def words() -> Tokenizer:
    """A tokenizer that shares nothing with BERT's: whole words by another order, one special token alone."""
    tokenizer = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate([*tiny.SPECIALS, *sorted(tiny.WORDS)])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def other(labels: int = 3) -> Any:
    """A random DistilBERT."""
    torch.manual_seed(5)
    config = DistilBertConfig(
        vocab_size=len(tiny.WORDS) + 5, dim=24, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32,
        num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    return DistilBertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    loading.save_model(other(), tiny.fast(words()), folder / "also")
    loading.save_model(other(5), tiny.fast(words()), folder / "odd")
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> spec.Target:
    found = catalog.load(str(tiny_target.write(folder, epochs=4)))
    return dataclasses.replace(found, distill=dataclasses.replace(found.distill, losses=(spec.KL(), spec.HiddenMSE())))


def taught_by_two(base: spec.Target, folder: Path, **how: Any) -> spec.Target:
    also = dataclasses.replace(base.teacher, source=f"dir:{folder}/also")
    return dataclasses.replace(base, co_teachers=(also,), distill=dataclasses.replace(base.distill, **how))


def walk(target: spec.Target, folder: Path, to: str) -> dict[str, store.Stage]:
    done = pipeline.run(target, folder=folder / "runs", beside=folder / "tiny_line.py", to=to)["stages"]
    paths = {name: Path(entry["folder"]) for name, entry in done.items()}
    return {name: store.Stage(path.name.partition("-")[0], done[name]["key"], path) for name, path in paths.items()}


def test_the_line_runs_through_both_trainings_with_teachers_of_two_kinds(base: spec.Target, folder: Path) -> None:
    target = taught_by_two(base, folder, combine=spec.Combine("confidence"))
    done = walk(target, folder, "quantize")
    own = ("assets", "assets_also1", "transfer", "transfer_also1", "teacher", "teacher_also1", "labels", "labels_also1")
    assert tuple(done) == (*own, "distill", "quantize")
    both = [done["labels"].path, done["labels_also1"].path]
    assert not list(both[1].glob("taught.hidden*")), "what is not the answer comes from the first teacher"
    for name in ("distill", "quantize"):
        made_from = store.read_json(done[name].path / store.MANIFEST)["made_from"]
        assert {path.name for path in both} <= set(made_from)
    data = read_data(target.task, done["assets"])
    p_KBC = softmax([LabelStore(path, "validation").logits for path in both])
    model, tokenizer = load_stage_model(done["distill"], data.labels)
    tokens = tokenise_splits(tokenizer, data, target.task.max_length, ("validation",))["validation"]
    q_BC = softmax(evaluate.logits(model, tokens))
    kl = []
    for b, q in enumerate(q_BC):
        w = np.array(reference("confidence", p_KBC[:, b]))
        p = (w[:, None] * p_KBC[:, b]).sum(0) / w.sum()
        kl.append((p * np.log(p / q)).sum())
    scores = {name: store.read_json(done[name].path / "scores.json") for name in ("distill", "quantize")}
    assert scores["distill"]["validation"]["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert scores["distill"]["validation"]["score"] > 0.5
    assert scores["quantize"]["training"]["steps"] > 0
    assert scores["quantize"]["qad"]["kl"] == pytest.approx(np.mean(kl), abs=0.1)


def test_a_co_teachers_stages_are_those_of_a_target_whose_only_teacher_it_is(base: spec.Target, folder: Path) -> None:
    def keys(target: spec.Target) -> dict[str, str]:
        line = pipeline.steps(target, folder / "runs", beside=folder / "tiny_line.py")
        return {step.name: step.stage.key for step in line}

    target = taught_by_two(base, folder, losses=(spec.KL(),))
    mine, its = keys(target), keys(dataclasses.replace(target, teacher=target.co_teachers[0], co_teachers=()))
    alone = keys(dataclasses.replace(target, co_teachers=()))
    for name in ("assets", "transfer", "teacher", "labels"):
        assert mine[f"{name}_also1"] == its[name] != mine[name] == alone[name]
    assert mine["distill"] != alone["distill"]


def test_a_co_teacher_of_other_labels_is_refused_by_name(base: spec.Target, folder: Path) -> None:
    odd = spec.Teacher(source=f"dir:{folder}/odd")
    with pytest.raises(DataError, match=r"teachers\d*/odd knows 5 labels and the data has 3"):
        walk(dataclasses.replace(base, co_teachers=(odd,)), folder, "teacher_also1")


ALSO = (spec.Teacher(source="dir:also"),)


@pytest.mark.parametrize(
    ("also", "how", "message"),
    [
        (ALSO, {"source": spec.Live()}, "co_teachers answer into label stores, and distill.source Live reads none"),
        (ALSO, {"combine": spec.Combine("weights", (1.0,))}, "'weights' with 1 weights for 2 teachers"),
        (ALSO, {"combine": spec.Combine("mean", (1.0, 2.0))}, "'mean' with 2 weights for 2 teachers"),
        (ALSO, {"combine": spec.Combine("weights", (1.0, 0.0))}, "distill.combine.weights[1] must be above 0"),
        ((), {"combine": spec.Combine("agreement")}, "several teachers' and there is one: add co_teachers"),
        (ALSO, {"generations": 2, "relabel": "best"}, "chooses one to answer, and co_teachers answer together"),
        ((), {"relabel": "best"}, "raise distill.generations"),
    ],
)
def test_what_contradicts_several_teachers_is_refused(
    base: spec.Target, also: tuple[spec.Teacher, ...], how: dict[str, Any], message: str
) -> None:
    with pytest.raises(TargetError) as caught:
        dataclasses.replace(base, co_teachers=also, distill=dataclasses.replace(base.distill, **how))
    assert message in str(caught.value)


# --------------------------------------------------------------------------------------------------- the best so far


def test_with_relabel_best_every_student_so_far_may_answer_and_rounds_have_seeds_of_their_own(
    base: spec.Target,
) -> None:
    def chain(**changes: Any) -> dict[str, dict[str, Any]]:
        distill = dataclasses.replace(base.distill, generations=3, relabel="best")
        return pipeline.graph(dataclasses.replace(base, distill=distill, **changes), {}, (), {})

    found = chain()
    assert found["labels"]["teacher"] == After("teacher")
    assert found["labels_1"]["teacher"] == (After("distill_1"),)
    assert found["labels_2"]["teacher"] == (After("distill_1"), After("distill_2"))
    assert [found[name]["seed"] for name in ("distill_1", "distill_2", "distill")] == [0, 1, 2]
    found = chain(assistants=(spec.Student(layers=3),))
    assert found["labels_1"]["teacher"] == (After("distill_1"),), "an assistant is there to teach"
    assert found["labels_3"]["teacher"] == tuple(After(f"distill_{i}") for i in (1, 2, 3))
    assert [found[name]["teacher"] for name in ("distill_2", "distill")] == [After("distill_1")] * 2


@pytest.mark.parametrize(("scores", "winner"), [((0.5, 0.9, 0.8), 1), ((0.9, 0.2, 0.3), 0), ((0.5, 0.7, 0.7), 2)])
def test_the_best_on_validation_answers_and_the_index_says_who(
    scores: tuple[float, ...], winner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.data()
    data.taught = data.train
    monkeypatch.setattr(labels_stage, "read_data", lambda task, assets: data)
    stages = tuple(store.Stage("distill", str(i), tmp_path / f"distill-{i}") for i in range(3))
    for i, stage in enumerate(stages):
        loading.save_model(tiny.bert(i), tiny.fast(tiny.wordpiece()), stage.path / "model")
        store.write_json(stage.path / "scores.json", {"validation": {"score": scores[i]}})
        store.write_json(stage.path / store.MANIFEST, {"inputs": {"task": {"max_length": 16 - i}}})  # which it reads
    (out := tmp_path / "out").mkdir()
    task = spec.TextClassification(train="train.csv", test="test.csv", max_length=16)
    context = store.Context(out, "cpu", 1, Progress(quiet=True))
    labels_stage.run(context, task=task, taps=("logits",), assets=stages[0], teacher=stages)
    index = store.read_json(out / "index.json")
    assert index["by"] == f"distill-{winner}"
    assert index["scores"] == {f"distill-{i}": score for i, score in enumerate(scores)}
    expected = evaluate.logits(tiny.bert(winner), tiny.tokens(data.train, 16 - winner))
    np.testing.assert_allclose(LabelStore(out, "taught").logits, expected, rtol=1e-4, atol=1e-5)


def test_each_round_of_the_line_is_taught_by_the_best_before_it(base: spec.Target, folder: Path) -> None:
    how = dataclasses.replace(base.distill, generations=3, relabel="best", epochs=2)
    done = walk(dataclasses.replace(base, distill=how), folder, "distill")
    for i in (1, 2):
        before = [done[name].path for name in ("distill_1", "distill_2")[:i]]
        scores = {path.name: store.read_json(path / "scores.json")["validation"]["score"] for path in before}
        index = store.read_json(done[f"labels_{i}"].path / "index.json")
        assert index["scores"] == scores
        assert scores[index["by"]] == max(scores.values())
    weights = [(done[name].path / "model/model.safetensors").read_bytes() for name in ("distill_1", "distill_2")]
    assert weights[0] != weights[1]
