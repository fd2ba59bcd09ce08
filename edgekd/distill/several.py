"""Several teachers whose stored answers are read as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd import spec
from edgekd.distill.data import Ints, Tokens
from edgekd.distill.labels import LabelStore
from edgekd.distill.live import mean
from edgekd.distill.signal import Signal
from edgekd.distill.taps import LOGITS, Needs

LEAST_CONFIDENCE = 1e-6
"""Of an answer without any: where all are so, they still count alike."""


def read(
    folders: Sequence[Path], split: str, combine: spec.Combine, needs: Needs = LOGITS, heads: int = 0, classes: int = 0
) -> LabelStore | Together:
    """One split of a teacher's label store, or of several together; all but answers of ``needs`` from the first."""
    first, *others = folders
    logits = Needs(top=needs.top)
    stores = [LabelStore(first, split, needs, heads, classes)]
    stores += [LabelStore(folder, split, logits, 0, classes) for folder in others]
    return Together(stores, combine) if others else stores[0]


class Together:
    """Label stores of the same examples, to be used like one: their answers combined, all else the first one's."""

    known = None  # a black box, of which not all probabilities are, teaches alone

    def __init__(self, stores: Sequence[LabelStore], combine: spec.Combine) -> None:
        self.stores, self.combine = stores, combine

    @property
    def fields(self) -> dict[str, Any]:
        """The first store's."""
        return self.stores[0].fields

    @property
    def logits(self) -> NDArray[np.float32]:
        """(N, C): log-probabilities of the combined answers."""
        return self.all_logits().numpy()

    def all_logits(self) -> Tensor:
        """The same as a tensor."""
        return together([Signal(store.all_logits()) for store in self.stores], self.combine).logits_BC

    def of(self, tokens: Tokens) -> Together:
        """Itself, if every store is of that split, as ``LabelStore.of``."""
        for store in self.stores:
            store.of(tokens)
        return self

    def answered(self) -> None:
        """All examples have an answer."""

    def signal(self, rows: Ints, tokens: Tokens, mask: NDArray[np.bool_], flat: Ints) -> Signal:
        """The combined signal for ``rows``, as ``LabelStore.signal``."""
        return together([store.signal(rows, tokens, mask, flat) for store in self.stores], self.combine)


def together(signals: list[Signal], combine: spec.Combine) -> Signal:
    """The answers of K teachers as one, log-probabilities, by ``combine``; all else of the first."""
    logits_KBC = torch.stack([signal.logits_BC for signal in signals])
    return replace(mean(signals, weights(combine, logits_KBC)), known_BC=None)  # what one cut, another may have


def weights(combine: spec.Combine, logits_KBC: Tensor) -> Tensor:
    """How much each of K teachers counts in each example (K, B), float32; they add up to 1 (see ``spec.Combine``)."""
    if combine.method == "confidence":
        log_p_KBC = logits_KBC.float().log_softmax(-1)
        entropy_KB = -(log_p_KBC.exp() * log_p_KBC).sum(-1)
        found_KB = (1 - entropy_KB / math.log(logits_KBC.shape[-1])).clamp_min(LEAST_CONFIDENCE)
    elif combine.method == "agreement":
        top_KB = logits_KBC.argmax(-1)
        alike_KKB = top_KB.unsqueeze(0) == top_KB.unsqueeze(1)
        leader_1B = alike_KKB.sum(0).argmax(0, keepdim=True)  # of the largest group, the earliest
        found_KB = (top_KB == top_KB.gather(0, leader_1B)).float()
    else:
        given = combine.weights or (1.0,) * len(logits_KBC)
        found_KB = torch.tensor(given).unsqueeze(1).expand(logits_KBC.shape[:2])
    return found_KB / found_KB.sum(0)
