"""The npm packages that the browser's runtime needs, in edgekd's cache, exactly as ``package-lock.json`` has them.

npm checks each by the lock file's hash, and no script of theirs is run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgekd import assets
from edgekd.errors import AssetError, MissingDependencyError
from edgekd.runtimes import INSTALL_WEB
from edgekd.wheels import sha256_of

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json")
DEBIAN = {"node": "nodejs", "npm": "npm", "chromium": "chromium"}
"""Program -> the package of Debian that has it."""


def folder() -> Path:
    """Where the packages are, or would be."""
    return assets.cache_folder() / "web" / sha256_of(HERE / "package-lock.json")[:16]


def versions() -> dict[str, str]:
    """Package -> version of what is installed there and not only needed by another package. Starts nothing."""
    if not folder().is_dir():
        return {}
    wanted: dict[str, str] = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return wanted  # exact ones, which the lock file holds to


def missing(programs: tuple[str, ...]) -> str | None:
    """The command that installs what is missing of ``programs`` and the packages; ``None`` if all is there."""
    apt = [DEBIAN[name] for name in programs if shutil.which(name) is None]
    npm = [] if folder().is_dir() else [INSTALL_WEB]
    if npm and shutil.which("npm") is None:
        apt.append(DEBIAN["npm"])
    needed = [f"apt-get install -y --no-install-recommends {' '.join(apt)}"] if apt else []
    return " && ".join(needed + npm) or None


def install() -> Path:
    """Fetch the packages, unless they are there; the folder appears whole or not at all. Returns it.

    Raises ``MissingDependencyError`` without Node and npm, ``AssetError`` where a package cannot be had or is not the
    one that the lock file names.
    """
    place = folder()
    if place.is_dir():
        return place
    if lacking := [name for name in ("node", "npm") if shutil.which(name) is None]:
        command = f"apt-get install -y --no-install-recommends {' '.join(DEBIAN[name] for name in lacking)}"
        raise MissingDependencyError(f"there is no {' and no '.join(lacking)} here; install it with: {command}")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as name:
        made = Path(name) / "made"
        made.mkdir()
        for file in FILES:
            shutil.copyfile(HERE / file, made / file)
        command_line = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        done = subprocess.run(command_line, cwd=made, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssetError(f"npm could not install {place.name} ({_why(done.stderr)}); try again with a network")
        try:
            made.rename(place)
        except OSError:
            if not place.is_dir():  # else another process was as busy
                raise
    return place


def _why(said: str) -> str:
    """What npm says is wrong: its first lines, without where it keeps its log."""
    lines = [line.removeprefix("npm error ") for line in said.splitlines() if line.startswith("npm error ")]
    return " ".join(line for line in lines if "complete log" not in line)[:300] or said.strip()[-300:]


def node() -> list[str]:
    """The command that begins a program of Node.

    Without its compiler's first, slow tier, which would be timed, and without its helpers' threads:
    what is asked for is one thread.
    """
    found = shutil.which("node")
    if found is None:
        raise MissingDependencyError(f"there is no node here; install it with: apt-get install -y {DEBIAN['node']}")
    return [found, "--no-liftoff", "--single-threaded"]


def environment() -> dict[str, str]:
    """What a program of Node is given: this process's environment, but no options of Node's."""
    return {name: value for name, value in os.environ.items() if name not in ("NODE_OPTIONS", "NODE_PATH")}
