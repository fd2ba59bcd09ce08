"""Claims about changed copies of training texts: which words change, into what, and what is never among the copies."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from edgekd import spec
from edgekd.errors import TargetError
from edgekd.models import neighbours
from edgekd.tasks import augment
from edgekd.tasks.examples import UNLABELLED, Examples


def data(train: list[str], validation: tuple[str, ...] = (), test: tuple[str, ...] = ()) -> Any:
    parts = {"train": train, "validation": list(validation), "test": list(test)}
    splits = {
        name: Examples([f"{name}/{i}" for i in range(len(texts))], texts, np.zeros(len(texts), np.int64))
        for name, texts in parts.items()
    }
    return SimpleNamespace(splits=splits, **splits)


def test_words_are_masked_and_replaced_as_often_as_asked_and_all_else_stays() -> None:
    train = [" ".join(f"{'known' if i % 2 else 'odd'}{i}-{row}," for i in range(40)) for row in range(250)]
    near = {f"known{i}": ("one", "two") for i in range(40)}
    options = spec.Augment(mask=0.2, replace=0.3)
    found = augment.copies(data(train), options, "[MASK]", near, seed=3)
    assert len(found) == len(train)
    counts: Counter[str] = Counter()
    for old, new in zip(train, found.texts, strict=True):
        for before, after in zip(old.split(), new.split(), strict=True):
            (word, row), (other, its) = before.split("-"), after.split("-")
            assert its in (row, "[MASK],") and after.endswith(",")
            kind = "mask" if other == "[MASK]" else "kept" if other == word else other
            counts[f"{'known' if 'known' in word else 'odd'} {kind}"] += 1
    total = 20 * len(train)
    expected = {"odd mask": 0.2, "odd kept": 0.8, "known mask": 0.2, "known kept": 0.5}
    expected |= {"known one": 0.15, "known two": 0.15}
    assert set(counts) == set(expected)
    for name, share in expected.items():
        assert abs(counts[name] - share * total) < 5 * math.sqrt(total * share * (1 - share)), name


def test_what_stands_between_words_stays_as_it_was() -> None:
    options = spec.Augment(mask=1.0, replace=0.0)
    assert augment.copies(data(["Oil,  prices\t(up) 3%!"]), options, "<m>", {}, 0).texts == ["<m>,  <m>\t(<m>) <m>%!"]


def test_copies_are_new_unlabelled_texts_that_no_split_says() -> None:
    near = {"a": ("A1", "a2"), "b": ("b1", "b2")}
    possible = {f"{x} {y}" for x, y in itertools.product(("a", "A1", "a2"), ("b", "b1", "b2"))}
    given = data(["a b", "words without others"], validation=("a1  B1",), test=("a2 b",))
    found = augment.copies(given, spec.Augment(copies=200, mask=0.0, replace=0.7), "", near, seed=0)
    assert sorted(found.texts) == sorted(possible - {"a b", "A1 b1", "a2 b"})  # each once
    assert found.labels.tolist() == [UNLABELLED] * len(found)
    assert all(name.startswith("train/0#copy-") for name in found.ids) and len(set(found.ids)) == len(found.ids)


def test_one_seed_gives_one_set_of_copies_and_more_of_them_begin_with_the_same() -> None:
    given = data(tiny.split(30, 0).texts)
    near = {word: tuple(tiny.WORDS[:3]) for word in tiny.WORDS}

    def texts(seed: int, copies: int) -> list[str]:
        return augment.copies(given, spec.Augment(copies=copies), "[MASK]", near, seed).texts

    one, two = texts(0, 1), texts(0, 2)
    assert texts(0, 2) == two and two[: len(one)] == one and texts(1, 1) != one
    assert len(set(two)) == len(two) > len(one)


# ----------------------------------------------------------------------------------------------------------- neighbours


def brute_force(table: Any, rows: dict[str, int], count: int) -> dict[str, tuple[str, ...]]:
    """The nearest others of each word, one by one in float64."""
    table = table.detach().double().numpy()
    cosine = {
        (a, b): table[i] @ table[j] / math.sqrt((table[i] @ table[i]) * (table[j] @ table[j]))
        for (a, i), (b, j) in itertools.permutations(rows.items(), 2)
    }
    return {a: tuple(sorted((b for b in rows if b != a), key=lambda b: -cosine[a, b])[:count]) for a in rows}


@pytest.mark.parametrize("block", [7, 256])
def test_the_nearest_words_are_those_of_a_brute_force_in_float64(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    tokenizer, table = tiny.fast(tiny.wordpiece()), tiny.bert().get_input_embeddings().weight
    words = Counter(tiny.WORDS) + Counter({"q": 2, "oilbarrel": 9, "ß": 3, "Oil": 1})  # two are no one token
    rows = {word: tokenizer.convert_tokens_to_ids(word) for word in [*tiny.WORDS, "q"]}
    expected = brute_force(table, rows, 4)
    assert neighbours.nearest(table, tokenizer, words, 4) == expected | {"Oil": expected["oil"]}
    often = neighbours.nearest(table, tokenizer, words + Counter({"Oil": 5}), 4)  # as it is mostly spelled
    swap = {"oil": "Oil"}
    assert often["bank"] == tuple(swap.get(word, word) for word in expected["bank"])
    assert len(neighbours.nearest(table, tokenizer, words, 999)["bank"]) == len(rows) - 1
    assert neighbours.nearest(table, tokenizer, Counter(["oil", "Oil"]), 4) == {}


def test_words_are_looked_up_as_they_stand_behind_a_space() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator([" ".join(tiny.WORDS)] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    words = tiny.WORDS[1:]  # the first has no space before it
    rows = {word: tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in words}
    assert neighbours.nearest(table, tokenizer, Counter(words), 3) == brute_force(table, rows, 3)


def test_what_stands_for_a_mask_is_what_the_tokenizer_reads_as_one_token() -> None:
    tokenizer = tiny.fast(tiny.wordpiece())
    assert neighbours.mask(tokenizer) == "[MASK]"
    tokenizer.mask_token = None
    assert neighbours.mask(tokenizer) == "[UNK]"
    tokenizer.unk_token = None
    with pytest.raises(TargetError, match="no mask and no unknown token; set mask=0"):
        neighbours.mask(tokenizer)


@pytest.mark.parametrize(("mask", "replace"), [(0.0, 0.0), (0.6, 0.5)])
def test_shares_of_words_that_change_nothing_or_more_than_all_are_refused(mask: float, replace: float) -> None:
    with pytest.raises(TargetError, match=r"must be above 0 and at most 1 together"):
        spec.Target(
            name="any",
            task=spec.TextClassification(train="a.csv"),
            teacher=spec.Teacher(source="dir:t"),
            student=spec.Student(),
            distill=spec.Distill(augment=spec.Augment(mask=mask, replace=replace)),
            quant=spec.Quant(calibration="any"),
        )
