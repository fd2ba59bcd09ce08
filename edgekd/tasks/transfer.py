"""Unlabelled text to teach on: what training documents say further on, and text from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgekd.errors import DataError
from edgekd.progress import Progress
from edgekd.spec import TextClassification
from edgekd.tasks import tables
from edgekd.tasks.examples import Examples, said, unlabelled


def windows(examples: Examples, words: int) -> Examples:
    """What each text says beyond its first ``words`` words, in windows of as many, without labels.

    Words are what white space parts. A last window of less than a fifth of ``words`` is left out.
    """
    ids: list[str] = []
    texts: list[str] = []
    for name, text in zip(examples.ids, examples.texts, strict=True):
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        for number, first in enumerate(range(words, len(spans), words), 1):
            window = spans[first : first + words]
            if 5 * len(window) >= words:
                ids.append(f"{name}#{number}")
                texts.append(text[window[0][0] : window[-1][1]])
    return unlabelled(ids, texts)


def elsewhere(
    locator: str, task: TextClassification, known: Iterable[str], progress: Progress | None = None
) -> Examples:
    """The texts that ``locator`` means, in their order, without labels: each once, and none that ``known`` has.

    Blank ones are left out, too, and case and white space make no difference. Raise ``DataError`` for a value that is
    no text, and where nothing is left; else as ``tables.read`` does.
    """
    column = task.transfer_column or task.text_column
    table = tables.read(locator, (column,), progress, task.encoding)
    seen = {said(text) for text in known} | {said("")}
    ids: list[str] = []
    texts: list[str] = []
    for row, text in zip(table.rows, table.cells[column], strict=True):
        if not tables.is_text(text):
            raise DataError(f"transfer/{row}: column {column!r} of {locator} holds {text!r}, which is no text; mend it")
        if (what := said(text)) not in seen:
            seen.add(what)
            ids.append(f"transfer/{row}")
            texts.append(text)
    if not ids:
        raise DataError(f"{locator} holds no text that the splits do not have: name another source of unlabelled text")
    return unlabelled(ids, texts)
