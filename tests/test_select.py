"""Claims about choosing the examples that are taught on."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import spec
from edgekd.distill import labels, loop, select
from edgekd.distill.learner import Learner
from edgekd.distill.taps import Needs, taps
from edgekd.progress import Progress

NEEDS = Needs(pooled=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> labels.LabelStore:
    folder = tmp_path_factory.mktemp("store")
    tokens = tiny.tokens(tiny.split(30, 0))
    labels.compute(folder, "train", tokens, tiny.bert(1), NEEDS, torch.device("cpu"), Progress(quiet=True))
    return labels.LabelStore(folder, "train", NEEDS)


def student() -> Any:
    return np.random.default_rng(0).normal(size=(30, 3))


def softmax(x: Any) -> Any:
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("method", ["entropy", "margin", "gap"])
def test_the_rows_are_those_of_each_answers_highest_scores_in_float64(store: labels.LabelStore, method: Any) -> None:
    p, q = softmax(np.array(store.logits)), softmax(student())
    ordered = np.sort(p, 1)
    score = {
        "entropy": -(p * np.log(p)).sum(1),
        "margin": ordered[:, -2] - ordered[:, -1],
        "gap": (p * np.log(p / q)).sum(1),
    }[method]
    answers = p.argmax(1)
    found = select.rows(spec.Select(method, 0.4), store, student, 0)
    assert len(found) == 12
    for answer in set(answers.tolist()):
        own = np.flatnonzero(answers == answer)
        taken = [row for row in found if answers[row] == answer]
        assert abs(len(taken) - 0.4 * len(own)) < 2
        assert taken == sorted(own[np.argsort(-score[own], kind="stable")][: len(taken)].tolist())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=60), st.data())
def test_every_class_keeps_its_share_and_gives_its_highest(rows: list[tuple[int, int]], data: Any) -> None:
    classes, scores = np.array(rows).T
    count = data.draw(st.integers(1, len(rows)))
    found = select.highest(scores.astype(float), classes, count)
    assert len(set(found.tolist())) == count
    for name in set(classes.tolist()):
        own, taken = np.flatnonzero(classes == name), found[classes[found] == name]
        assert abs(len(taken) - count / len(rows) * len(own)) < 2
        assert sorted(taken.tolist()) == sorted(own[np.argsort(-scores[own], kind="stable")][: len(taken)].tolist())


def test_random_rows_depend_on_the_seed_alone(store: labels.LabelStore) -> None:
    one, again, other = (select.rows(spec.Select("random", 0.5), store, student, seed) for seed in (1, 1, 2))
    assert len(set(one.tolist())) == 15 and one.tolist() == again.tolist() != other.tolist()
    assert select.rows(spec.Select("random", 0.001), store, student, 0).shape == (1,)


def test_diverse_rows_are_the_centers_of_the_teachers_mean_states(store: labels.LabelStore) -> None:
    found = select.rows(spec.Select("diversity", 0.2), store, student, 0)
    centers = select.k_center(torch.from_numpy(np.array(store.fields["pooled"])), 6)
    assert found.tolist() == sorted(centers.tolist()) and len(set(found.tolist())) == 6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_no_point_is_farther_from_the_centers_than_twice_the_best_possible(seed: int, count: int) -> None:
    points = np.random.default_rng(seed).normal(size=(9, 2))

    def radius(rows: Any) -> float:
        return float(np.linalg.norm(points[:, None] - points[list(rows)], axis=2).min(1).max())

    found = select.k_center(torch.from_numpy(points), count).tolist()
    best = min(radius(rows) for rows in itertools.combinations(range(9), count))
    assert radius(found) <= 2 * best + 1e-9


def test_a_training_on_some_rows_never_sees_the_others(tmp_path: Path) -> None:
    class Seen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Learner(tiny.bert(0, num_hidden_layers=1), (spec.CE(),))
            self.labels: list[int] = []

        def forward(self, batch: Any) -> Any:
            self.labels += batch.labels_B.tolist()
            return self.inner(dataclasses.replace(batch, labels_B=batch.labels_B % 3))

    tokens, module = tiny.tokens(tiny.split(40, 0)), Seen()
    tokens = dataclasses.replace(tokens, labels=np.arange(40))  # each example known by its label
    chosen = np.array([3, 8, 9, 20, 33])
    task = loop.Task("t", module, tokens, None, lambda: {"score": 0.0}, rows=chosen)
    options: dict[str, Any] = dict(
        options=spec.Optimizer(batch_size=2), seed=0, out=tmp_path, progress=Progress(quiet=True)
    )
    assert loop.fit(task, epochs=3, **options)["steps"] == 9
    assert sorted(module.labels) == sorted(chosen.tolist() * 3)


def test_diversity_alone_asks_the_teacher_for_more() -> None:
    asked = {m: taps(spec.Distill(select=spec.Select(m)), spec.Student(layers=2)) for m in ("gap", "diversity")}
    assert asked == {"gap": ("logits",), "diversity": ("logits", "pooled")}
