"""Changed copies of training texts, without labels: some words masked, some replaced by others that stand near them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekd import spec
from edgekd.tasks.examples import Examples, said, unlabelled

WORD = re.compile(r"\w+")


def words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in ``texts``."""
    return Counter(word for text in texts for word in WORD.findall(text))


def copies(data: Any, options: spec.Augment, mask: str, near: Mapping[str, Sequence[str]], seed: int) -> Examples:
    """Up to ``options.copies`` of each training text of ``data``, changed as ``Augment`` says; one seed, one result.

    ``mask`` is what stands for a masked word, ``near`` has what may replace a word; one that it has not stays. A copy
    that says what a text of the data set or another copy says is left out.
    """
    seen = {said(text) for part in data.splits.values() for text in part.texts}
    ids: list[str] = []
    texts: list[str] = []
    for number in range(1, options.copies + 1):
        rng = np.random.default_rng([seed, number])
        for name, text in zip(data.train.ids, data.train.texts, strict=True):
            copy = _changed(text, options, mask, near, rng)
            if (what := said(copy)) not in seen:
                seen.add(what)
                ids.append(f"{name}#copy-{number}")
                texts.append(copy)
    return unlabelled(ids, texts)


def _changed(
    text: str, options: spec.Augment, mask: str, near: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> str:
    spans = [match.span() for match in WORD.finditer(text)]
    draws, picks = rng.random((2, len(spans)))
    parts, end = [], 0
    for i in np.flatnonzero(draws < options.mask + options.replace):
        first, last = spans[i]
        if draws[i] < options.mask:
            other = mask
        elif others := near.get(text[first:last]):
            other = others[int(picks[i] * len(others))]
        else:
            continue
        parts += [text[end:first], other]
        end = last
    return "".join([*parts, text[end:]])
