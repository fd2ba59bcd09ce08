"""Texts with their ids and labels, and when two texts say the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from edgekd.tasks.sampling import Ints

UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class Examples:
    """``ids[i]`` is ``source/row``: the task's source (``train``, ``validation``, ``test``, ``transfer``) and the
    0-based row in it.

    A window of its text has ``#n`` behind that, a changed copy ``#copy-n``. ``labels`` are int64 indices into the data
    set's ``labels``, or ``UNLABELLED``, shape (N,).
    """

    ids: list[str]
    texts: list[str]
    labels: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints) -> Examples:
        """The examples at ``rows``, in that order."""
        return Examples([self.ids[row] for row in rows], [self.texts[row] for row in rows], self.labels[rows])


def unlabelled(ids: list[str], texts: list[str]) -> Examples:
    """Examples without labels."""
    return Examples(ids, texts, np.full(len(ids), UNLABELLED, np.int64))


def join(*parts: Examples | None) -> Examples:
    """All parts that are there, one behind the other."""
    there = [part for part in parts if part is not None]
    ids, texts = ([value for part in there for value in getattr(part, field)] for field in ("ids", "texts"))
    return Examples(ids, texts, np.concatenate([part.labels for part in there]))


def said(text: str) -> bytes:
    """What a text says, as a digest: equal for texts that differ in white space or case alone."""
    return hashlib.blake2b(" ".join(text.split()).casefold().encode(), digest_size=16).digest()
