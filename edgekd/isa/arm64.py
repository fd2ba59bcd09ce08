"""A Python for arm64 with onnxruntime and numpy, in edgekd's cache, to be run by ``qemu-aarch64``.

Made of Debian's packages, which a private apt checks by Debian's signatures and only unpacks (no system of its own, no
change to this one), and of the registry's aarch64 wheels, which pip checks by the registry's hashes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from edgekd import assets, wheels
from edgekd.downloads import pip_download
from edgekd.errors import AssetError, MissingDependencyError
from edgekd.store import write_json

SUITE, PYTHON = "bookworm", "3.11"
MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6", "libgomp1")
GLIBC_MINOR = 36
"""Of the suite: its wheels may be built for any glibc from 2.17 to 2.36."""

FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
CORES = {
    "cortex-a72": ("0xd08", FEATURES),
    "cortex-a76": ("0xd0b", f"{FEATURES} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
}
"""QEMU's name -> the part number and the features that Linux would tell in ``/proc/cpuinfo``."""


def onnxruntime_version() -> str:
    """The version installed here, which is the one to compare with."""
    return metadata.version("onnxruntime")


def folder() -> Path:
    """Where the arm64 Python is, or would be."""
    return assets.cache_folder() / "isa" / f"arm64-{SUITE}-onnxruntime-{onnxruntime_version()}"


def installed() -> bool:
    """Whether it is there."""
    return (folder() / "manifest.json").is_file()


def install() -> None:
    """Fetch and unpack it, unless it is there; the folder appears whole or not at all.

    Raises ``MissingDependencyError`` without apt, dpkg-deb or Debian's keys, ``AssetError`` where a download fails.
    """
    if installed():
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingDependencyError(f"skipped: there is no {tool} here; arm64 can be verified on Debian or Ubuntu")
    if not KEYRING.is_file():
        raise MissingDependencyError(
            f"skipped: {KEYRING} is missing; install it with: apt-get install -y debian-archive-keyring"
        )
    folder().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder().parent, prefix=".partial-") as name:
        partial = Path(name)
        made = partial / "made"
        (made / "root").mkdir(parents=True)
        debs = _debs(partial / "apt")
        for deb in debs:
            _run(["dpkg-deb", "-x", str(deb), str(made / "root")])
        found = [_wheel(wanted, partial) for wanted in (f"onnxruntime=={onnxruntime_version()}", "numpy")]
        for wheel in found:
            wheels.unpack_all(wheel, made / "site")
        files = {path.name: wheels.sha256_of(path) for path in (*debs, *found)}
        write_json(made / "manifest.json", {"suite": SUITE, "files": files})
        try:
            made.rename(folder())
        except OSError:
            if not installed():  # else another process was as busy
                raise


def _debs(apt: Path) -> list[Path]:
    """The packages and all they depend on, by an apt that knows of no installed package and writes to ``apt`` alone.

    The system's own settings for apt (proxies, dates) hold.
    """
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {SUITE} main\n")
    given = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
        "Dir::State": f"{apt}/state",
        "Dir::State::status": f"{apt}/status",
        "Dir::Cache": f"{apt}/cache",
        "Dir::Etc::sourcelist": f"{apt}/sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    tool = ["apt-get", "-q", *(word for key, value in given.items() for word in ("-o", f"{key}={value}"))]
    _run([*tool, "update"])
    _run([*tool, "install", "-y", "--download-only", "--no-install-recommends", *PACKAGES])
    return sorted((apt / "cache" / "archives").glob("*.deb"))


def _wheel(requirement: str, partial: Path) -> Path:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC_MINOR + 1)]
    out = partial / requirement.partition("=")[0]
    status, said = pip_download(
        requirement, out, options=(*platforms, "--platform=manylinux2014_aarch64", f"--python-version={PYTHON}")
    )
    found = list(out.glob("*.whl"))
    if status or len(found) != 1:
        why = " ".join(said.strip().splitlines()[-2:])
        raise AssetError(f"pip finds no aarch64 wheel of {requirement} for Python {PYTHON} ({why}); try again later")
    return found[0]


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        why = " ".join(line for line in done.stderr.splitlines() if line.startswith("E:")) or done.stderr[-300:]
        raise AssetError(f"{words[0]} {words[-1]} failed ({why.strip()}); see whether {MIRROR} can be reached")


def python(prefix: Path, cpu: str) -> tuple[Path, dict[str, str]]:
    """Lay out ``prefix``, an empty folder, as what a process on ``cpu`` sees of ``/``; its Python and environment.

    onnxruntime asks ``/proc`` and ``/sys`` which CPU it is on, which under emulation are the host's: it would crash, or
    pick kernels of the wrong CPU. QEMU looks into the prefix first.
    """
    root, site = folder() / "root", folder() / "site"
    for entry in root.iterdir():
        (prefix / entry.name).symlink_to(entry)
    part, features = CORES[cpu]
    lines = {"processor": "0", "BogoMIPS": "50.00", "Features": features, "CPU implementer": "0x41"}
    lines |= {"CPU architecture": "8", "CPU variant": "0x1", "CPU part": part, "CPU revision": "1"}
    _tell(prefix / "proc/cpuinfo", "".join(f"{name}\t: {value}\n" for name, value in lines.items()))
    for name in ("possible", "present", "online"):
        _tell(prefix / "sys/devices/system/cpu" / name, "0\n")
    for name in ("core_id", "physical_package_id", "core_siblings_list", "thread_siblings_list"):
        _tell(prefix / "sys/devices/system/cpu/cpu0/topology" / name, "0\n")
    return root / f"usr/bin/python{PYTHON}", {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(site)}


def _tell(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
