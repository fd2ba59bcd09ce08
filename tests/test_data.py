"""Claims about batches: every example once, little padding, an order that the seed alone decides."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from edgekd.distill import data
from edgekd.distill.data import Tokens, by_length, epoch_steps, micro_batches, tokenise


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_holds_every_example_once(count: int, size: int, seed: int, epoch: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 100, count)
    steps = epoch_steps(lengths, size, seed, epoch)
    assert sorted(np.concatenate(steps).tolist()) == list(range(count))
    assert all(len(step) <= size for step in steps) and len(steps) == -(-count // size)


def test_an_order_is_the_same_for_a_seed_and_new_every_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    one, again, next_one = (np.concatenate(epoch_steps(lengths, 16, 7, e)) for e in (0, 0, 1))
    assert (one == again).all() and (one != next_one).any()


def test_buckets_pad_far_less_than_a_plain_shuffle() -> None:
    lengths = np.random.default_rng(0).integers(4, 128, 3200)

    def padded(steps: list[np.ndarray]) -> int:
        return sum(int(lengths[s].max()) * len(s) for s in steps)

    plain = np.random.default_rng(1).permutation(3200).reshape(-1, 32)
    assert padded(epoch_steps(lengths, 32, 0, 0)) < 1.1 * lengths.sum() < padded(list(plain)) / 1.5


def test_a_batch_holds_the_tokenizers_own_ids_and_masks_the_rest() -> None:
    part = tiny.split(9, 0)
    tokens = tiny.tokens(part)
    tokenizer = tiny.wordpiece()
    tokenizer.enable_truncation(16)
    rows = np.array([8, 0, 3])
    (batch,) = micro_batches(tokens, rows, None)
    for i, row in enumerate(rows):
        ids = tokenizer.encode(part.texts[row]).ids
        assert batch.inputs["input_ids"][i, : len(ids)].tolist() == ids
        assert batch.inputs["attention_mask"][i].sum() == len(ids)
        assert (batch.inputs["input_ids"][i, len(ids) :] == 0).all()
    assert batch.labels_B.tolist() == part.labels[rows].tolist()


def test_a_text_without_a_token_becomes_one_that_is_padding_but_attended_to() -> None:
    tokenizer = tiny.wordpiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokens = tokenise(tokenizer, ["", "oil price", " "], np.zeros(3, np.int64), 16, 0)
    assert tokens.lengths.tolist() == [1, 2, 1]
    assert (tokens.ids[[0, 3]] == 0).all() and tokens.starts.tolist() == [-1, 0, 4, -1]
    _, mask, _ = tokens.gather(np.arange(3))
    assert mask.tolist() == [[True, False], [True, True], [True, False]]


def test_a_long_text_is_cut_on_the_right_whatever_the_tokenizer_did_before() -> None:
    tokenizer = tiny.wordpiece()
    tokenizer.enable_truncation(4, direction="left")
    tokenizer.enable_padding(length=20, direction="left")
    tokens = tokenise(tokenizer, ["oil price bank rate", "oil"], np.zeros(2, np.int64), 4, 0)
    assert [tokenizer.id_to_token(i) for i in tokens.ids] == ["[CLS]", "oil", "price", "[SEP]", "[CLS]", "oil", "[SEP]"]


def test_texts_encoded_in_parts_are_those_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    part = tiny.split(23, 0)
    whole = tiny.tokens(part)
    monkeypatch.setattr(data, "ENCODED", 5)
    parts = tiny.tokens(part)
    for name in ("ids", "starts", "offsets", "labels"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()


def test_micro_batches_carry_the_totals_of_the_whole_step() -> None:
    tokens = tiny.tokens(tiny.split(10, 0))
    rows = np.arange(10)
    parts = list(micro_batches(tokens, rows, 4))
    assert [len(p.labels_B) for p in parts] == [4, 4, 2]
    assert {(p.total_examples, p.total_tokens) for p in parts} == {(10, int(tokens.lengths.sum()))}
    assert torch.cat([p.labels_B for p in parts]).tolist() == tokens.labels.tolist()


def test_evaluation_batches_cover_the_split_from_short_to_long() -> None:
    tokens = tiny.tokens(tiny.split(50, 0))
    order = np.concatenate(by_length(tokens, 8))
    assert sorted(order.tolist()) == list(range(50)) and (np.diff(tokens.lengths[order]) >= 0).all()


def test_the_share_of_a_text_that_is_read_is_that_of_its_characters_up_to_the_last_token() -> None:
    def tokens(*starts: list[int]) -> Tokens:
        flat, ends = np.concatenate(starts).astype(np.int32), np.cumsum([0, *map(len, starts)])
        return Tokens(np.zeros_like(flat), flat, ends, np.zeros(len(starts), np.int64), 0)

    teacher = tokens([-1, 0, 4, 9, -1], [-1, 0, 3, -1], [-1, -1], [-1, 0, -1])
    student = tokens([-1, 0, 2, 4, -1], [-1, 0, 3, -1], [-1, -1], [-1, 0, 5, -1])
    assert data.text_read(student, teacher) == (5 / 10 + 1 + 1 + 1) / 4
    assert data.text_read(teacher, teacher) == 1
