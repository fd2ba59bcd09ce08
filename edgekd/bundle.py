"""What a shipped bundle is, and whether it still is: standard library only, for whoever deploys one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import BundleError

SCHEMA = "edgekd.bundle/1"
MANIFEST = "manifest.json"
MODEL = "onnx/model_quantized.onnx"
"""Where transformers.js looks for an int8 model."""


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises ``BundleError`` if the folder is none, or one of another version."""
    try:
        manifest: dict[str, Any] = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle} is no edgekd bundle: it has no readable {MANIFEST} ({error}); make one with `edgekd ship`"
        ) from error
    if schema != SCHEMA:
        raise BundleError(
            f"{bundle} is of format {schema!r}, this edgekd reads {SCHEMA}; make it again with `edgekd ship`"
        )
    return manifest


def describe(path: Path) -> dict[str, Any]:
    """``{"sha256", "bytes"}`` of a file."""
    with path.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "bytes": path.stat().st_size}


def contents(bundle: Path) -> list[str]:
    """Every file of the folder but the manifest, as sorted relative paths with forward slashes."""
    paths = (path for path in bundle.rglob("*") if path.is_symlink() or path.is_file())
    found = (path.relative_to(bundle).as_posix() for path in paths)
    return sorted(name for name in found if name != MANIFEST)


def verify_files(bundle: Path, *, unlisted: bool = True) -> dict[str, Any]:
    """Hash every file again and return the manifest.

    Raises ``BundleError`` naming all files that are missing, altered or (unless ``unlisted`` is false) in the folder
    but not in the manifest. The folder may have been moved or renamed.
    """
    manifest = read_manifest(bundle)
    listed, there = manifest.get("files"), set(contents(bundle))
    if not isinstance(listed, dict) or MODEL not in listed:
        raise BundleError(f"the manifest of {bundle} lists no {MODEL}; make the bundle again with `edgekd ship`")
    missing = sorted(set(listed) - there)
    altered = [name for name in sorted(set(listed) & there) if describe(bundle / name) != listed[name]]
    extra = sorted(there - set(listed)) if unlisted else []
    found = {"missing": missing, "altered": altered, "not in the manifest": extra}
    problems = [f"{what}: {', '.join(names)}" for what, names in found.items() if names]
    if problems:
        raise BundleError(f"{bundle} is not what was shipped ({'; '.join(problems)}); make it again with `edgekd ship`")
    return manifest


def verified(row: Mapping[str, Any]) -> str:
    """A row of the manifest's ``verified`` in words: ``avx2 (Haswell): 256 of 256 labels as on AMD EPYC, ...``."""
    furthest = row["max_logit_difference"]
    return (
        f"{row['isa']} ({row['cpu']}): {row['same_labels']} of {row['examples']} labels as on {row['native_cpu']}, "
        f"score {row['score']:.2%} against {row['native_score']:.2%}, "
        + ("logits not finite" if furthest is None else f"logits within {furthest:.2g}")
    )
