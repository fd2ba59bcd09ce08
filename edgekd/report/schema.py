"""The format of ``report.json``; ``schema.json`` beside this file documents every field and its unit."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from edgekd.errors import StoreError

SCHEMA = "edgekd.report/1"


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a report."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    return loaded


def validate(report: Any) -> None:
    """Raise ``StoreError``, naming the place, if ``report`` is not a report of this version."""
    import jsonschema

    found = report.get("schema") if isinstance(report, dict) else None
    if found != SCHEMA:
        raise StoreError(f"not a report of format {SCHEMA} but {found!r}; make it again with this version of edgekd")
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(report))
    if problem is not None:
        message = problem.message if len(problem.message) < 300 else problem.message[:297] + "..."
        raise StoreError(f"report{_place(problem.absolute_path)}: {message}; make the report again with `edgekd run`")


def load(path: Path) -> dict[str, Any]:
    """Read and validate a ``report.json``. Raises ``StoreError`` if it is missing, not JSON or not such a report."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"there is no report {path}; make it with `edgekd run`") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read the report {path} ({error}); make it again with `edgekd run`") from error
    validate(report)
    for name, empty in (("isa", []), ("session", {}), ("devices", []), ("ship", []), ("conversions", {})):
        report.setdefault(name, empty)  # which older reports lack
    for row in report["rows"]:
        row.setdefault("host", None)
        row.setdefault("measured_on", "host-proxy" if report["device"]["missing"] else "device")
    return report


def _place(path: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
