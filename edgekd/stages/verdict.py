"""The report of a run, from the folders of its stages: cheap, so written anew each time and not kept in the store."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from edgekd import spec
from edgekd.isa import results
from edgekd.store import MANIFEST, Stage, read_json, sha256

PACKAGES = ("torch", "transformers", "brevitas", "onnx", "datasets", "tokenizers", "numpy")
"""Whose versions a report tells, beside those that the bench wrote down."""


def run(target: spec.Target, stages: Mapping[str, Stage], out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into ``out``, the run's folder."""
    from edgekd.report import build, conclude, devices, files, verdicts

    environment = read_json(stages["bench"].path / "environment.json")
    info = {
        name: {"key": stage.key, "folder": stage.path.name, "seconds": read_json(stage.path / MANIFEST)["seconds"]}
        for name, stage in stages.items()
    }
    model = sha256(stages["export"].path / verdicts.SHIPPED / "model.onnx")
    report = build.build(
        target,
        {name: stage.path for name, stage in stages.items()},
        environment["machine"],
        {**_versions(), **environment["versions"]},
        out.name,
        info,
        isa=results.recorded(out, model),
        session=environment.get("session"),
        created=environment.get("measured"),
    )
    if records := devices.recorded(out, model):
        report = conclude.again(devices.merge(report, records))
    files.write(report, out)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # the teacher may have been made elsewhere
            continue
    return found
