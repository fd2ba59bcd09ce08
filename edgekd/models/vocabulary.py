"""Trim a tokenizer's vocabulary to a corpus.

The kept tokens are the specials, every single-character piece that the corpus uses (so that rare words are spelled
rather than lost), and then the most frequent tokens. What falls out is spelled with shorter pieces; what cannot be
spelled becomes the unknown token, and its rate is reported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgekd.errors import AssetError


def trim(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> tuple[Tokenizer, list[int]]:
    """A tokenizer of at most ``size`` tokens, and for each new id the old one (to slice embeddings with).

    New ids keep the old order. WordPiece, BPE (a kept token keeps the merges that make it) and Unigram are known;
    any other model raises ``AssetError``, as does a size too small for the specials and characters.
    """
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    model = data["model"]
    kind = model["type"]
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise AssetError(f"cannot trim a {kind} tokenizer: set student.vocabulary=None to keep it whole")
    bare = Tokenizer.from_str(json.dumps(data | {"truncation": None, "padding": None}))
    counts: Counter[int] = Counter()
    for encoding in bare.encode_batch(list(texts)):
        counts.update(encoding.ids)
    old = bare.get_vocab(with_added_tokens=True)
    specials = {token["content"] for token in data["added_tokens"]} | {str(model.get("unk_token"))}
    base = {t for t, i in old.items() if t in specials or _is_base(t, i, counts, kind, data)}
    ranked = sorted((t for t in old if t not in base and counts[old[t]]), key=lambda t: (-counts[old[t]], old[t]))
    if len(base) > size:
        raise AssetError(f"student.vocabulary={size} is below the {len(base)} special and single-character tokens")
    kept = set(base)
    parts = _merge_parts(model) if kind == "BPE" else {}
    for token in ranked:
        wanted = _closure(token, parts, kept)
        if len(kept) + len(wanted) <= size:
            kept |= wanted
    order = sorted(kept, key=lambda t: old[t])
    new = {token: i for i, token in enumerate(order)}
    if kind == "Unigram":
        model["vocab"] = [[t, dict(model["vocab"])[t]] for t in order]
        model["unk_id"] = next((new[t] for t, _ in model["vocab"] if old[t] == model["unk_id"]), 0)
    else:
        model["vocab"] = dict(new)
    if kind == "BPE":
        model["merges"] = [m for m in model["merges"] if all(p in kept for p in _pair(m)) and "".join(_pair(m)) in kept]
    for token in data["added_tokens"]:
        token["id"] = new[token["content"]]
    _renumber(data.get("post_processor"), new)
    data["truncation"] = data["padding"] = None
    return Tokenizer.from_str(json.dumps(data)), [old[t] for t in order]


def _is_base(token: str, old: int, counts: Counter[int], kind: str, data: dict[str, Any]) -> bool:
    prefix = str(data["model"].get("continuing_subword_prefix") or "##") if kind == "WordPiece" else ""
    stem = token.removeprefix(prefix) if prefix else token.removeprefix("▁")
    return len(stem) <= 1 and (kind == "BPE" or stem.isascii() or counts[old] > 0)


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _merge_parts(model: dict[str, Any]) -> dict[str, tuple[str, str]]:
    parts: dict[str, tuple[str, str]] = {}
    for merge in model["merges"]:
        parts.setdefault("".join(_pair(merge)), _pair(merge))
    return parts


def _closure(token: str, parts: dict[str, tuple[str, str]], kept: set[str]) -> set[str]:
    """``token`` and all the tokens its merges pass through."""
    wanted, stack = set[str](), [token]
    while stack:
        item = stack.pop()
        if item not in kept and item not in wanted:
            wanted.add(item)
            stack.extend(parts.get(item, ()))
    return wanted


def _renumber(post: dict[str, Any] | None, new: dict[str, int]) -> None:
    """Give the specials that the post-processor inserts their new ids."""
    if post is None:
        return
    for part in post.get("processors", []):
        _renumber(part, new)
    for name in ("sep", "cls"):
        if isinstance(post.get(name), list):
            post[name][1] = new[post[name][0]]
    for special in (post.get("special_tokens") or {}).values():
        special["ids"] = [new[t] for t in special["tokens"]]


def unknown_rate(tokenizer: Tokenizer, texts: Sequence[str], unknown: int | None) -> dict[str, float]:
    """The share of tokens that are the unknown token, and the mean tokens per document (untruncated)."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [np.asarray(e.ids) for e in tokenizer.encode_batch(list(texts))]
    total = sum(len(i) for i in ids)
    lost = sum(int((i == unknown).sum()) for i in ids) if unknown is not None else 0
    return {"unknown_rate": lost / max(1, total), "tokens_per_document": total / max(1, len(ids))}
