"""Build small wheels, honest and hostile, for the tests of assets."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path

FILES = {
    "demo/model/config.json": b"{}",
    "demo/model/sub/weights.bin": b"w" * 5000,
    "demo/data.csv": b"text,label\na,b\n",
}


def build(folder: Path, files: dict[str, bytes] = FILES, links: dict[str, str] | None = None) -> tuple[Path, str]:
    """A wheel of the package ``edgekd-demo`` 1.0 that pip accepts: its path and SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "edgekd_demo-1.0-py3-none-any.whl"
    info = "edgekd_demo-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: edgekd-demo\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path, sha256(path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def keep(wheel: Path, root: Path) -> str:
    """Put a wheel where edgekd keeps the fetched ones, so that no test needs pip; returns its SHA-256."""
    digest = sha256(wheel)
    kept = root / "wheels" / f"{digest}.whl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(wheel.read_bytes())
    return digest


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
