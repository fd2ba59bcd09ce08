"""Claims about trimming a tokenizer: what is kept encodes as before, what is dropped is spelled, nothing is hidden."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgekd.errors import AssetError, TargetError
from edgekd.models import tokenizer as own_tokenizer
from edgekd.models.vocabulary import trim, unknown_rate

TEXTS = tiny.split(120, 5).texts


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.mark.parametrize("make", [tiny.wordpiece, bpe, unigram])
def test_a_vocabulary_large_enough_changes_no_encoding_of_the_corpus(make) -> None:  # type: ignore[no-untyped-def]
    tokenizer = make()
    small, old = trim(tokenizer, TEXTS, tokenizer.get_vocab_size())
    for text in TEXTS:
        assert [old[i] for i in small.encode(text).ids] == tokenizer.encode(text).ids


@pytest.mark.parametrize(("make", "size"), [(tiny.wordpiece, 65), (bpe, 290), (unigram, 38)])
def test_a_trimmed_vocabulary_has_at_most_its_size_and_keeps_each_token_text(make, size: int) -> None:  # type: ignore[no-untyped-def]
    tokenizer = make()
    small, old = trim(tokenizer, TEXTS, size)
    assert small.get_vocab_size() == len(old) <= size < tokenizer.get_vocab_size()
    assert [tokenizer.id_to_token(i) for i in old] == [small.id_to_token(i) for i in range(len(old))]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*tiny.WORDS, "unseen", "words"]), min_size=1, max_size=12), st.integers(58, 75))
def test_dropped_words_are_spelled_not_lost(words: list[str], size: int) -> None:
    small, _ = trim(tiny.wordpiece(), TEXTS, size)
    encoding = small.encode(" ".join(words))
    assert small.token_to_id("[UNK]") not in encoding.ids
    spelled = "".join(t.removeprefix("##") for t in encoding.tokens[1:-1])
    assert spelled == "".join(words)


def test_specials_keep_their_place_in_the_template() -> None:
    small, _ = trim(tiny.wordpiece(), TEXTS, 65)
    tokens = small.encode("oil price").tokens
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert small.encode("oil").ids[0] == small.token_to_id("[CLS]")


def test_the_most_frequent_words_stay() -> None:
    small, _ = trim(tiny.wordpiece(), ["oil oil oil price price bank"], 59)
    assert small.token_to_id("oil") is not None and small.token_to_id("price") is not None
    assert small.token_to_id("wheat") is None


def test_the_unknown_rate_counts_unknown_tokens() -> None:
    tokenizer = tiny.wordpiece()
    found = unknown_rate(tokenizer, ["oil ☃", "oil price"], tokenizer.token_to_id("[UNK]"))
    assert found == {"unknown_rate": 1 / 8, "tokens_per_document": 4.0}


def test_a_size_below_the_alphabet_is_refused() -> None:
    with pytest.raises(AssetError, match="below the"):
        trim(tiny.wordpiece(), TEXTS, 10)


def test_an_unknown_kind_of_tokenizer_is_refused_with_the_way_out() -> None:
    with pytest.raises(AssetError, match="vocabulary=None"):
        trim(Tokenizer(models.WordLevel({"[UNK]": 0, "oil": 1}, unk_token="[UNK]")), TEXTS, 2)


def test_a_tokenizer_of_a_students_own_is_the_same_each_time_and_spells_every_text() -> None:
    own = own_tokenizer.train(TEXTS, 290)
    backend = own.backend_tokenizer
    for _ in range(5):  # that of WordPiece would not be
        assert own_tokenizer.train(TEXTS, 290).backend_tokenizer.to_str() == backend.to_str()
    assert len(own) == 290 and own.pad_token_id == 0
    assert unknown_rate(backend, [*TEXTS, "日本 ☃ \x00"], own.unk_token_id)["unknown_rate"] == 0
    assert backend.encode(TEXTS[0]).tokens[0] == "[CLS]" and backend.encode(TEXTS[0]).tokens[-1] == "[SEP]"
    assert backend.encode("Oil  PRICE").ids == backend.encode("oil  price").ids
    with pytest.raises(TargetError, match=r"student\.vocabulary=100 is below the 260 tokens"):
        own_tokenizer.train(TEXTS, 100)
