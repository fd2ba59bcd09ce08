"""ONNX Runtime's mobile format: a ``.ort``, optimized beforehand, for builds that hold nothing but its operators.

*Fixed* style for ARM: it runs anywhere (for x86 it would hold layouts that other builds lack). Beside it lies
``required_operators_and_types.config``, which such a build is made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import ExportError
from edgekd.runtimes.ort_cpu import OrtSession, load, version

__all__ = ["OrtSession", "convert", "executed", "load", "version"]

CONFIG = "required_operators_and_types.config"
TOKENS = 16


def convert(source: Path, out: Path, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Write ``out`` and ``CONFIG`` beside it from the ``.onnx`` at ``source``; any length fits.

    Returns what ``executed`` says of it. Raises ``ExportError`` where it does in float what the ``.onnx`` does in int8.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    convert_onnx_models_to_ort(
        source,
        output_dir=out.parent,
        optimization_styles=[OptimizationStyle.Fixed],
        target_platform="arm",
        enable_type_reduction=True,
    )
    (out.parent / f"{source.stem}.ort").rename(out)
    (out.parent / f"{source.stem}.{CONFIG}").rename(out.parent / CONFIG)
    found = executed(out)
    if lost := sorted(set(executed(source)["int8"]) - set(found["int8"])):
        raise ExportError(f"{lost[0]} ({len(lost)} in all) is int8 in the .onnx and would be float in the .ort")
    return found


def executed(path: Path) -> dict[str, list[str]]:
    """The multiplications of a ``.onnx`` or ``.ort`` that onnxruntime does in ``int8`` and in ``float``, by node.

    As its own profile of one call tells, since a ``.ort`` cannot be looked into otherwise.
    """
    import onnxruntime

    from edgekd.onnxio import audit
    from edgekd.onnxio.names import module_path

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.parent / path.name)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {value.name: np.zeros((1, TOKENS), np.int64) for value in session.get_inputs()})
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text(encoding="utf-8"))
    profile.unlink()
    found: dict[str, list[str]] = {"int8": [], "float": []}
    for event in events:
        operator = event.get("args", {}).get("op_name")
        if operator in audit.MULTIPLICATIONS and event["name"].endswith("_kernel_time"):
            kind = "int8" if audit.kind(operator) == "int8" else "float"
            found[kind].append(module_path(event["name"].removesuffix("_kernel_time")))
    return found
