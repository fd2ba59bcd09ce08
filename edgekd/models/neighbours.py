"""Which words stand near each other in a model's own table of word embeddings, and what stands for a masked one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.errors import TargetError

BLOCK = 256  # words compared with all others at a time


def mask(tokenizer: Any) -> str:
    """What a text says in place of a word for ``tokenizer`` to read its mask token there, or the unknown one.

    Raises ``TargetError`` for a tokenizer that reads neither as one token.
    """
    for token in filter(None, (tokenizer.mask_token, tokenizer.unk_token)):
        if len(tokenizer.backend_tokenizer.encode(token, add_special_tokens=False).ids) == 1:
            return str(token)
    raise TargetError("distill.augment: the teacher's tokenizer has no mask and no unknown token; set mask=0")


def nearest(table_VH: Tensor, tokenizer: Any, words: Counter[str], count: int) -> dict[str, tuple[str, ...]]:
    """For each of ``words`` that is one token, the ``count`` others whose embeddings have the largest cosine to its.

    The nearest comes first, equals in the order of their ids. Words that are the same token (in lower case, say) stand
    for each other; the most frequent is the one that is given. A word without any other has no entry.
    """
    ids = _tokens(tokenizer, list(words))
    spelled: dict[int, str] = {}
    for word, _ in words.most_common():
        if word in ids:
            spelled.setdefault(ids[word], word)
    rows = sorted(spelled)
    if len(rows) < 2:
        return {}
    unit_NH = F.normalize(table_VH.detach()[rows].float(), dim=-1)
    near: dict[int, tuple[str, ...]] = {}
    for first in range(0, len(rows), BLOCK):
        cosine_BN = unit_NH[first : first + BLOCK] @ unit_NH.T
        own = torch.arange(len(cosine_BN))
        cosine_BN[own, first + own] = -torch.inf
        order_BK = cosine_BN.topk(min(count, len(rows) - 1), dim=-1).indices
        for i, others in enumerate(order_BK.tolist()):
            near[rows[first + i]] = tuple(spelled[rows[j]] for j in others)
    return {word: near[ids[word]] for word in ids}


def _tokens(tokenizer: Any, words: list[str]) -> dict[str, int]:
    """The id of each word that is one token, as it stands within a text: behind a space, if that makes a difference."""
    backend, special = tokenizer.backend_tokenizer, set(tokenizer.all_special_ids)
    backend.no_truncation()
    backend.no_padding()
    found: dict[str, int] = {}
    for space in ("", " "):  # behind a space comes last: what it finds counts
        encodings = backend.encode_batch([space + word for word in words], add_special_tokens=False)
        for word, encoding in zip(words, encodings, strict=True):
            if len(encoding.ids) == 1 and encoding.ids[0] not in special:
                found[word] = encoding.ids[0]
    return found
