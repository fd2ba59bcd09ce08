"""A report's three files; and how what a device measured gets into those of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from edgekd.report import conclude, devices, figures, html, markdown, schema
from edgekd.store import write_json, write_text

PARTS = ("rows", "latency")
"""Of a report, what a device's record holds beside the device."""


def write(report: Mapping[str, Any], out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into ``out``; nothing where the report is not valid."""
    schema.validate(report)
    texts = {"report.md": markdown.render(report), "report.html": html.render(report)}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    for name, text in texts.items():
        write_text(out / name, text)


def merge(report: Mapping[str, Any], run: Path, model: str) -> Path | None:
    """Bring all that devices found of ``model`` (SHA-256 of the shipped ``.onnx``) into the report of ``run``.

    Where the run has none, ``report`` becomes it, the one that came with the bundle. A device that the report knows and
    ``run`` does not, since its record is elsewhere, stays in it. Returns the report's path, or ``None`` where the run
    has gone on to another model meanwhile, whose report stays as it is.
    """
    path = run / "report.json"
    found = schema.load(path) if path.exists() else report
    if len({one["stages"]["export"]["key"] for one in (found, report)}) > 1:
        return None
    records = devices.recorded(run, model)
    records += _others(found, {record["device"]["name"] for record in records})
    records.sort(key=lambda record: str(record["device"]["name"]))
    write(conclude.again(devices.merge(found, records)), run)
    return path


def _others(report: Mapping[str, Any], names: Set[str]) -> Iterator[dict[str, Any]]:
    """What the report has of each device but those called ``names``, as its record would have it."""
    for device in report["devices"]:
        if device["name"] not in names:
            parts = {part: [row for row in report[part] if figures.device(row) == device["name"]] for part in PARTS}
            yield {"device": device, **parts}
