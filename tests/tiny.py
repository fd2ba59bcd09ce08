"""Tiny models, tokenizers and data that tests of training, surgery and quantization share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from edgekd.distill.data import Tokens, tokenise
from edgekd.progress import Advance, Progress

WORDS = (
    "oil crude barrel price bank rate loan money grain wheat corn crop ship port cargo trade profit share stock earn"
).split()
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
LABELS = ("energy", "finance", "food")


def wordpiece(words: list[str] = WORDS) -> Tokenizer:
    """BERT's kind of tokenizer over ``words`` and single letters."""
    vocab = {t: i for i, t in enumerate([*SPECIALS, *LETTERS, *("##" + x for x in LETTERS), *words, "##ing"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIALS)
    pair = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    return tokenizer


def fast(tokenizer: Tokenizer) -> Any:
    """The same tokenizer as transformers wraps it."""
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bert(seed: int = 0, **changes: Any) -> Any:
    """A random BERT classifier, eager attention, evaluation mode."""
    torch.manual_seed(seed)
    size = wordpiece().get_vocab_size()
    options: dict[str, Any] = dict(
        vocab_size=size, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)},
        attn_implementation="eager", pad_token_id=0,
    )  # fmt: skip
    return BertForSequenceClassification(BertConfig(**(options | changes))).eval()


def split(count: int, seed: int, prefix: str = "train") -> Any:
    """Documents whose label is told by their words."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(LABELS)
    groups = (WORDS[:4], WORDS[4:8] + WORDS[16:], WORDS[8:12])
    texts = [" ".join(rng.choice([*groups[y], *WORDS[12:16]], rng.integers(3, 14))) for y in labels]
    return SimpleNamespace(ids=[f"{prefix}/{i}" for i in range(count)], texts=texts, labels=labels.astype(np.int64))


def data(count: int = 60) -> Any:
    """A data set of three splits."""
    return SimpleNamespace(
        train=split(count, 1), validation=split(24, 2, "train"), test=split(24, 3, "test"), labels=LABELS
    )


def tokens(part: Any, max_length: int = 16, tokenizer: Tokenizer | None = None) -> Tokens:
    """One split, tokenised."""
    return tokenise(tokenizer or wordpiece(), part.texts, part.labels, max_length, 0)


class Bars(Progress):
    """Shows nothing and remembers: lines that were logged, and for each bar its total and how far it came."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []
        self.total: dict[str, int | None] = {}
        self.done: dict[str, int] = {}

    def log(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def bar(self, name: str, *, total: int | None, start: int = 0, unit: str = "step") -> Iterator[Advance]:
        self.total[name], self.done[name] = total, 0

        def advance(steps: int = 1, /, **fields: object) -> None:
            self.done[name] += steps

        yield advance
