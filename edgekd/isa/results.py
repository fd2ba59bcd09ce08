"""What was found on other instruction sets, kept beside the run, by the SHA-256 of the file that was run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgekd.errors import StoreError
from edgekd.store import read_json, write_json

NAME = "isa.json"


def record(run: Path, sha256: str, rows: Iterable[dict[str, Any]]) -> None:
    """Keep ``rows`` (see ``verify.verify``) in the run's folder; a new row of the same CPU replaces the old one."""
    found = _read(run / NAME)
    found[sha256] = {**found.get(sha256, {}), **{f"{row['isa']} {row['cpu']}": row for row in rows}}
    write_json(run / NAME, found)


def recorded(run: Path, sha256: str) -> list[dict[str, Any]]:
    """The rows of exactly this file, by instruction set and CPU. Raises ``StoreError`` for a damaged record."""
    found = _read(run / NAME).get(sha256, {})
    return [found[name] for name in sorted(found)]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path} ({error}); delete it and verify the bundle again") from error
    return found
