"""What a shipped bundle is, and whether it still is: standard library only, for whoever deploys one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import BundleError

SCHEMA = "edgekd.bundle/1"
MANIFEST = "manifest.json"
MODEL = "onnx/model_quantized.onnx"
"""Where transformers.js looks for an int8 model."""


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _fields(value: Any, **kinds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(name in value and fits(value[name]) for name, fits in kinds.items())


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _verified(row: Any) -> bool:
    words, numbers = ("isa", "cpu", "native_cpu"), ("same_labels", "examples", "score", "native_score")
    kinds: dict[str, Callable[[Any], bool]] = dict.fromkeys(words, _text) | dict.fromkeys(numbers, _number)
    return _fields(
        row,
        **kinds,
        max_logit_difference=lambda value: value is None or _number(value),
        same=lambda value: isinstance(value, bool),
    )


WANTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "labels": ("a list of names, each once", lambda v: _names(v) and 0 < len(v) == len(set(v))),
    "max_length": ("a number above 0", _count),
    "minimum_onnxruntime": ("a version", _text),
    "session": ("options, among them threads above 0", lambda v: _fields(v, threads=_count)),
    "device": (
        "null, or name, isa and features",
        lambda v: v is None or _fields(v, name=_text, isa=_text, features=_names),
    ),
    "verified": ("rows of `edgekd verify`", lambda v: v is None or (isinstance(v, list) and all(map(_verified, v)))),
}
"""What whoever runs a bundle relies on in its manifest; what may be null may be missing."""


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises ``BundleError`` if the folder is none, one of another version, or its manifest
    holds what no edgekd wrote.
    """
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
    for name, (wanted, fits) in WANTED.items():
        if not fits(manifest.get(name)):
            raise BundleError(
                f"the manifest of {bundle} is damaged: {name} must be {wanted}, not {manifest.get(name)!r}; make the "
                "bundle again with `edgekd ship`"
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
