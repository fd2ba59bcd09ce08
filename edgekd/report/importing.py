"""What a phone's tools printed, into the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekd.bundle import MANIFEST, MODEL, read_manifest, verify_files
from edgekd.errors import DataError
from edgekd.report import android, devices, files, schema, verdicts
from edgekd.store import sha256


def read(file: Path, folder: Path, runs: Path, name: str | None = None) -> Path:
    """Merge ``file`` (see ``android``) into the report in ``folder``, a run's or a bundle's; returns that report.

    A bundle stays as it is: its report, with the rows, becomes that of its run in ``runs``. The device is called
    ``name``, or what the text calls it. Raises ``DataError``, and has written nothing, for a text that is malformed or
    of another model, and where that cannot be told; ``BundleError`` for an altered bundle.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="strict")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file} ({error}); give the text that the bundle's commands leave") from error
    try:
        found = android.parse(text)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    report = schema.load(folder / "report.json")
    run = runs / read_manifest(folder)["run"] if (folder / MANIFEST).is_file() else folder
    if (found["export"], found["model"]) != (report["stages"]["export"]["key"], _model(folder, report)):
        raise DataError(f"{file} is of another model than the report of {report['run']}; give the run that it is of")
    sizes = {row["runtime"]: row["size_bytes"] for row in report["rows"] if row["artifact"] == "student_qad"}
    machine = {"cpu": found["device"], "isa": found["isa"], "flags": found["flags"]}
    tools = sorted({android.TOOLS[cell.runtime] for cell in found["rounds"]})
    device: dict[str, Any] = {
        "name": name or found["device"],
        "by": " and ".join(tools),
        "imported": True,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "missing": devices.missing(report["device"], machine),
        "machine": machine,
        "versions": {"android": found["android"]},
        **dict.fromkeys(("before", "after", "throttled", "sustained")),
    }
    place = devices.folder(run, device["name"], found["model"])
    devices.record(place, found["model"], device, android.table(found, sizes))
    written = files.merge(report, run, found["model"])
    if written is None:
        raise DataError(f"{run} has another model meanwhile, so its report stays as it is; the rows are in {place}")
    return written


def _model(folder: Path, report: Mapping[str, Any]) -> str:
    """The SHA-256 of the ``.onnx`` that ships: as the bundle in ``folder`` has it, or the store of the run there."""
    if (folder / MANIFEST).is_file():
        return str(verify_files(folder, unlisted=False)["files"][MODEL]["sha256"])
    file = folder.parent / "store" / report["stages"]["export"]["folder"] / verdicts.SHIPPED / "model.onnx"
    if not file.is_file():
        raise DataError(
            f"{file} is gone, so nothing tells which model the text is of; give the bundle's folder instead"
        )
    return sha256(file)
