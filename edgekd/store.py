"""The run store: what a stage made, found again by the hash of exactly what it was given.

``<store>/store/<stage>-<key>/`` is a finished stage; its ``manifest.json`` lists every file with its size and SHA-256.
A stage works in ``.partial-<stage>-<key>/``, under a lock, and the folder is renamed when it is done: so a killed or
failed stage is never taken for a finished one, and is resumed where it stopped. The key is the first 16 hex digits of
the SHA-256 of the canonical JSON of the stage's name, revision and inputs; an input that is itself a stage counts by
its key, so all keys are known before anything has run. Which bytes of that stage were read stands in the manifest from
the start (``edgekd.lineage``); when other bytes have taken their place, what was made from the old ones is not found
any more.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import lineage, lock
from edgekd.errors import StoreError
from edgekd.progress import Progress

MANIFEST = lineage.MANIFEST
MANIFEST_SCHEMA = "edgekd.stage/2"


@dataclass(frozen=True)
class Context:
    """What a stage function gets besides its inputs; nothing of it is in the key.

    ``out`` is the folder to write into and may hold what a killed try left. ``device`` is ``"cpu"`` or ``"cuda"``,
    ``threads`` the number torch uses, ``bf16`` whether its fast matrix products are bfloat16 (CUDA, or a CPU with the
    instructions). ``rank`` of ``world_size`` processes differs from 0 of 1 only in ``labels`` under ``torchrun``.
    """

    out: Path
    device: str
    threads: int
    progress: Progress
    rank: int = 0
    world_size: int = 1
    bf16: bool = False


@dataclass(frozen=True)
class Stage:
    """A finished stage (or, in a plan, one whose key is known): ``path`` is its folder."""

    name: str
    key: str
    path: Path


def stages(value: object) -> tuple[Stage, ...]:
    """The stages in an input of another: itself, those of a tuple, or none."""
    return tuple(part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Stage))


# ----------------------------------------------------------------------------------------------------------------- keys


def canonical(value: object) -> Any:
    """``value`` as plain JSON data: a dataclass becomes ``{"type": its name, **fields}``, a ``Stage`` its key.

    Equal values give equal results: 1 and 1.0 are the same number, a list and a tuple the same sequence. A mapping in a
    field with the metadata ``ordered`` becomes the list of its items; a field whose metadata say ``key=False`` is left
    out, since no result depends on it. Raises ``TypeError`` for anything that has no such form (a path, a set, NaN),
    rather than hash its ``repr``.
    """
    if isinstance(value, Stage):
        return value.key
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keyed = [field for field in dataclasses.fields(value) if field.metadata.get("key", True)]
        given = {field: getattr(value, field.name) for field in keyed}
        fields = {f.name: canonical(list(v.items()) if f.metadata.get("ordered") else v) for f, v in given.items()}
        return {"type": type(value).__name__, **fields}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise TypeError(f"{value} cannot be part of a key")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("a mapping in a key must have string keys")
        return {name: canonical(item) for name, item in value.items()}
    raise TypeError(f"{type(value).__name__} cannot be part of a key: {value!r}")


def key(stage: str, revision: int, inputs: Mapping[str, object]) -> str:
    """The 16 hex digits under which a stage with these inputs is stored."""
    content = {"stage": stage, "revision": revision, "inputs": canonical(inputs)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------- folders


def folder(store: Path, name: str, key: str) -> Path:
    """Where the finished stage is, or would be."""
    return store / "store" / f"{name}-{key}"


def partial_folder(store: Path, name: str, key: str) -> Path:
    """Where the unfinished stage is, or would be."""
    return store / "store" / f".partial-{name}-{key}"


def problem(path: Path, *, contents: bool) -> str | None:
    """Why the folder ``path``, finished or not, cannot be used or resumed, or ``None`` if it can.

    Always compares every file's size with the manifest (with ``contents`` the SHA-256 too), and what the stage was made
    from with what lies there now.
    """
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["schema"] != MANIFEST_SCHEMA:
            return f"its manifest has schema {manifest['schema']!r}, not {MANIFEST_SCHEMA!r}"
        name = f"{manifest['stage']}-{key(manifest['stage'], manifest['revision'], manifest['inputs'])}"
        if name != path.name.removeprefix(".partial-"):
            return "its manifest belongs to other inputs"
        for name, expected in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if contents and sha256(file) != expected["sha256"]:
                return f"{name} has changed since it was written (SHA-256)"
        return lineage.out_of_date(path, manifest)
    except FileNotFoundError:
        return "its manifest is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"


def find(store: Path, name: str, key: str) -> Stage | None:
    """The finished stage, or ``None`` if there is none that can be used (see ``problem``)."""
    path = folder(store, name, key)
    return Stage(name, key, path) if path.is_dir() and problem(path, contents=False) is None else None


@contextmanager
def partial(store: Path, stage: Stage, revision: int, inputs: Mapping[str, object]) -> Iterator[Path]:
    """The unfinished folder, locked against every other process for as long as the block runs.

    Its manifest says from the start what it is made from, and lists no file yet. The folder stays, whatever happens in
    the block. Raises ``StoreError`` if another run holds it, or if it cannot be made.
    """
    path = partial_folder(store, stage.name, stage.key)
    with _locked(path):
        if not (path / MANIFEST).exists():
            manifest = {
                "schema": MANIFEST_SCHEMA,
                "stage": stage.name,
                "key": stage.key,
                "revision": revision,
                "inputs": canonical(inputs),
                "made_from": lineage.made_from(stage.path for value in inputs.values() for stage in stages(value)),
                "files": {},
            }
            write_json(path / MANIFEST, manifest)
        yield path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = lock.take(path)
    except OSError as error:
        if disk_full(error):
            raise full_disk_error(error) from error
        raise StoreError(f"cannot write to {path}: {error.strerror}; choose another folder with --store") from error
    try:
        yield
    finally:
        os.close(descriptor)


def finish(store: Path, stage: Stage, *, made: Mapping[str, object]) -> Stage:
    """Turn the unfinished folder into the finished one, atomically: files to disk, manifest, rename.

    Must be called inside ``partial``. Temporary files (``*.tmp``, ``.*.partial``) that a killed try left are dropped.
    ``made`` says how, beside what is in the key, and is kept in the manifest.
    """
    source, target = partial_folder(store, stage.name, stage.key), folder(store, stage.name, stage.key)
    for leftover in (*source.rglob("*.tmp"), *source.rglob(".*.partial")):
        leftover.unlink()
    files: dict[str, dict[str, object]] = {}
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source).as_posix()
        if file.is_file() and relative not in (lock.LOCK, MANIFEST):
            files[relative] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        if file.is_file() or file.is_dir():
            _sync(file)
    write_json(source / MANIFEST, {**read_json(source / MANIFEST), "files": files, **made})
    _remove(target)  # only an unusable one can be there
    (source / lock.LOCK).unlink()  # who opens a new one before the rename will find that its folder has gone
    os.rename(source, target)
    _sync(target.parent)
    return Stage(stage.name, stage.key, target)


def discard(store: Path, name: str, key: str) -> None:
    """Forget the stage, finished or not. Raises ``StoreError`` while another run is writing it."""
    _remove(folder(store, name, key))
    begun = partial_folder(store, name, key)
    if begun.exists():
        with _locked(begun):
            shutil.rmtree(begun)


def _remove(finished: Path) -> None:
    if finished.exists():
        doomed = finished.with_name(f".discarded-{finished.name}-{os.getpid()}")
        os.rename(finished, doomed)  # at once, so that a kill in the middle leaves no folder with half its files
        shutil.rmtree(doomed)


def leftovers(store: Path, name: str, key: str) -> bool:
    """Whether a killed try of the stage left anything to resume from."""
    path = partial_folder(store, name, key)
    begun = path.is_dir() and any(entry.name not in (lock.LOCK, MANIFEST) for entry in path.iterdir())
    return begun and problem(path, contents=False) is None


# ---------------------------------------------------------------------------------------------------------------- files


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it has, after any crash, either its old content or all of the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; NaN and infinity raise ``ValueError``."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------------------------------------------- errors


def disk_full(error: BaseException) -> bool:
    """Whether ``error``, or what caused it, is a full disk; libraries in other languages only say so in their text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def full_disk_error(error: BaseException) -> StoreError:
    """The message a full disk gets."""
    return StoreError(
        f"the disk is full ({error}); free some space or choose another folder with --store, then give the same "
        "command again: finished stages are reused and the interrupted one resumes"
    )
