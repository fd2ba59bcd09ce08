"""ONNX Runtime's mobile format: a ``.ort``, optimized beforehand, for builds that hold nothing but its operators.

*Fixed* style for ARM: it runs anywhere (for x86 it would hold layouts that other builds lack). Beside it lies
``required_operators_and_types.config``, which such a build is made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.runtimes.ort_cpu import OrtSession, load, version

__all__ = ["OrtSession", "convert", "load", "version"]

CONFIG = "required_operators_and_types.config"


def convert(source: Path, out: Path, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Write ``out`` and ``CONFIG`` beside it from the ``.onnx`` at ``source``; any length fits."""
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
    return {}
