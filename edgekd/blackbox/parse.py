"""From what a black box says to log-probabilities of the labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError

Row = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Log-probabilities (C,) and which of them are known; the other classes share what is left."""

AROUND = " \t\r\n\"'`*.:-"
"""What models like to put around a label."""


def plain(text: str) -> str:
    """``text`` without what may stand around a label, on one line, in small letters."""
    return " ".join(text.split()).strip(AROUND).casefold()


def names(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as answers are compared with them. Raises ``DataError`` where two cannot be told apart."""
    found = tuple(map(plain, labels))
    for i, name in enumerate(found):
        if not name or name in found[:i]:
            raise DataError(
                f"a black box could not be understood: of the label {labels[i]!r} only {name!r} is looked at, in small "
                "letters; give the labels names that differ in more"
            )
    return found


def label_of(text: str, known: Sequence[str]) -> int | None:
    """Which label an answer is, or the only one whose words stand in it; ``None`` if that is not clear."""
    said = plain(text)
    if said in known:
        return known.index(said)
    inside = [i for i, name in enumerate(known) if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
    return inside[0] if len(inside) == 1 else None


def certain(label: int, count: int) -> Row:
    """The row of an answer without probabilities: it is taken to be sure."""
    row = np.full(count, -np.inf)
    row[label] = 0.0
    return row, np.ones(count, np.bool_)


def from_tokens(positions: Sequence[Mapping[str, Any]], known: Sequence[str]) -> Row | None:
    """The row that the most probable tokens of an answer tell of; ``None`` if its own tokens begin no label.

    Each position has the ``token`` that was chosen and ``top``, [[token, log-probability], ...], which holds that too.
    The answer is followed until it can be one label alone. What was listed beside it on the way counts for the label
    that it begins, if it is one; what begins several, and what is not listed, is left to the others; what begins none
    is no label, and the rest is seen given that.
    """
    found = dict.fromkeys(range(len(known)), 0.0)
    nonsense, said, mass, last = 0.0, "", 1.0, None
    for position in positions:
        chosen, odds = position["token"], dict(map(tuple, position["top"]))
        for token, log_probability in odds.items():
            if token != chosen:
                able = _begun(said + token, known) or _ended(said, known)
                share = mass * math.exp(log_probability)
                if len(able) == 1:
                    found[able[0]] += share
                elif not able:
                    nonsense += share
        able = _begun(said + chosen, known) or _ended(said, known)
        said, mass = said + chosen, mass * math.exp(odds.get(chosen, 0.0))
        if len(able) <= 1:
            last = able
            break
    last = _ended(said, known) if last is None else last
    if len(last) != 1:
        return None
    found[last[0]] += mass
    return _row({label: share for label, share in found.items() if share > 0}, len(known), 1.0 - nonsense)


def from_shares(shares: Mapping[str, float], known: Sequence[str]) -> Row | None:
    """The row of probabilities by label; ``None`` where there are none. Raises ``DataError`` for what cannot be."""
    found = {label_of(label, known): share for label, share in shares.items()}
    fit = all(isinstance(share, int | float) and 0 <= share <= 1 for share in found.values())
    if None in found or not fit or sum(found.values()) > 1 + 1e-3:
        raise DataError(
            f"the teacher's function returned {dict(shares)!r}: it must name labels, with probabilities from 0 to 1 "
            "and at most 1 in all"
        )
    return _row({label: share for label, share in found.items() if label is not None}, len(known), 1.0)


def _row(found: Mapping[int, float], count: int, total: float) -> Row | None:
    """Log-probabilities of the found shares of ``total``, and what is left spread over the others."""
    if sum(found.values()) <= 0:
        return None
    is_known = np.zeros(count, np.bool_)
    is_known[list(found)] = True
    left, others = max(0.0, total - sum(found.values())), count - len(found)
    shares = np.full(count, left / others if others else 0.0)
    shares[list(found)] = list(found.values())
    with np.errstate(divide="ignore"):
        return np.log(shares / shares.sum()), is_known


def _begun(text: str, known: Sequence[str]) -> list[int]:
    """The labels that can still become of an answer which begins so."""
    said = " ".join(text.lstrip(AROUND).split()).casefold() + (" " if text[-1:].isspace() else "")
    said = said.lstrip()
    return [i for i, name in enumerate(known) if name.startswith(said)] or _ended(text, known)


def _ended(text: str, known: Sequence[str]) -> list[int]:
    """The label that a whole answer is."""
    said = plain(text)
    return [i for i, name in enumerate(known) if name == said]
