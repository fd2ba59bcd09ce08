"""Which bytes of other stages a stage was made from.

A key says what was asked for; what came out may differ all the same: on another device, with another number of threads
or another version of torch. So a stage's manifest keeps, under ``made_from``, a digest of every stage that it reads.
What was made from other bytes than lie there now is out of date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"

TIMED = ("scores.json",)
"""Files that tell times beside scores: two makings of the same bytes differ in them, and no weights come of them."""


def made_from(folders: Iterable[Path]) -> dict[str, str]:
    """The digest of each of these finished stages, by the name of its folder."""
    return {folder.name: digest(_manifest(folder)) for folder in folders}


def digest(manifest: Mapping[str, Any]) -> str:
    """The SHA-256, in hex, of the list of a stage's files with their hashes: the same for the same bytes."""
    files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name not in TIMED}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def out_of_date(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Why the stage in ``folder``, finished or not, does not follow from those it reads, or ``None`` if it does.

    A stage that is not there now will most likely come out the same, and is judged when it has.
    """
    for name, before in manifest["made_from"].items():
        try:
            now = _manifest(folder.with_name(name))
        except FileNotFoundError:
            continue
        if digest(now) != before:
            return f"it was made from another {name}"
        if why := out_of_date(folder.with_name(name), now):
            return f"{name} will be built again: {why}"
    return None


def _manifest(folder: Path) -> Any:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
