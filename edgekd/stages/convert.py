"""Every contender in the format of a runtime that does not read ``.onnx``."""

from __future__ import annotations

from typing import Any

from edgekd import runtimes
from edgekd.runtimes import converting
from edgekd.stages.bench import ARTIFACTS, CONVERSION
from edgekd.store import Context, Stage, write_json

REVISION = 4


def run(ctx: Context, *, runtime: str, versions: dict[str, str], lengths: tuple[int, ...], export: Stage) -> None:
    """Write ``<artifact>/`` with the runtime's file and ``conversion.json``: what its converter says, or ``error``.

    ``versions`` are those of the packages that convert; ``lengths`` the numbers of tokens that a file must take.
    """
    names = [name for name in ARTIFACTS if (export.path / name).is_dir()]
    file = runtimes.entry(runtime).file
    with ctx.progress.bar(f"convert for {runtime}", total=len(names), unit="graph") as advance:
        for name in names:
            folder = ctx.out / name
            if not (folder / CONVERSION).exists():  # a killed try may have got so far
                folder.mkdir(exist_ok=True)
                source = export.path / name / "model.onnx"
                found: dict[str, Any] = converting.convert(runtime, source, folder / file, lengths)
                if "error" in found:
                    ctx.progress.log(f"convert: {name} for {runtime}: {found['error']}")
                write_json(folder / CONVERSION, found)
            advance(1, last=name)
