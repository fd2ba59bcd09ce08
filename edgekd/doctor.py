"""What this machine offers to edgekd: packages, CPU, GPU, disk; and the command for what is missing."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from edgekd import __version__, assets, machine, runtimes, spec

EXTRAS = ("openvino", "litert", "litert-convert", "executorch", "mnn", "ncnn", "dev")


def examine() -> dict[str, Any]:
    """Everything as JSON data.

    ``packages``: ``{"name", "version", "wanted", "required", "advice"}``, where advice is the command that mends what
    is missing or of a wrong version, else ``None``. ``install`` mends all required ones at once (``None`` if none is).
    ``runtimes``: ``{"name", "file", "version", "lacks", "converter"}``, where version is ``None`` if it cannot be used
    here, for what it lacks: the command that installs it, or a CPU. ``converter`` is the command that installs what
    makes its file, if that is not installed.
    """
    packages = [_package(requirement, extra) for requirement, extra in _requirements()]
    broken = [package["wanted"] for package in packages if package["required"] and package["advice"]]
    fingerprint, versions = machine.fingerprint(), runtimes.installed()
    return {
        "edgekd": __version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "runtimes": [_runtime(name, versions) for name in runtimes.RUNTIMES],
        "install": _pip(broken) if broken else None,
        "machine": fingerprint,
        "devices": {device.name: machine.missing_features(device) for device in spec.DEVICES},
        "gpu": machine.gpu(),
        "torch_gpu": _torch_gpu(),
        "cache": _disk(assets.cache_folder()),
        "here": _disk(Path.cwd()),
    }


def text(found: dict[str, Any]) -> str:
    """The examination for a person, what is missing last."""
    host, gpu = found["machine"], found["gpu"]
    lines = [f"edgekd {found['edgekd']}, Python {found['python']}, {host['os']}", ""]
    for package in found["packages"]:
        state = package["version"] or ("MISSING" if package["required"] else "not installed (optional)")
        lines.append(
            f"  {package['name']:<14} {state:<12} {'' if not package['advice'] else '<- ' + package['wanted']}"
        )
    lines.append("")
    for runtime in found["runtimes"]:
        state = runtime["version"] or f"skipped: {runtime['lacks']}"
        made = f"; {runtime['file']} is not made: {runtime['converter']}" if runtime["converter"] else ""
        lines.append(f"runtime  {runtime['name']:<14} {state}{made}")
    lines += ["", f"CPU      {host['cpu']} ({host['isa']}), {host['threads']} usable threads, {host['memory_mib']} MiB"]
    lines.append(f"flags    {' '.join(host['flags']) or 'none that matter'}")
    for name, lacks in found["devices"].items():
        speaks = machine.stand_in(lacks) if lacks else "figures taken here speak for it"
        lines.append(f"device   {name}: {speaks}")
    driver = f"{gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}" if gpu else "none"
    lines.append(
        f"GPU      {driver}; torch {'uses ' + found['torch_gpu'] if found['torch_gpu'] else 'runs on the CPU'}"
    )
    for what in ("cache", "here"):
        disk = found[what]
        lines.append(
            f"disk     {disk['path']}: {disk['free_gib']} GiB free{'' if disk['writable'] else ', NOT WRITABLE'}"
        )
    advice = [package["advice"] for package in found["packages"] if package["advice"] and not package["required"]]
    programs = [one["lacks"] for one in found["runtimes"] if one["lacks"] and runtimes.entry(one["name"]).programs]
    advice += dict.fromkeys(programs)  # of the others it is a package above, or a CPU
    if gpu and not found["torch_gpu"]:
        cuda = ["--force-reinstall", "torch", "--index-url", "https://download.pytorch.org/whl/cu128"]
        advice.append(_pip(cuda) + "  # a torch that can use the GPU")
    missing = ([found["install"]] if found["install"] else []) + advice
    lines += (
        ["", "nothing that every run needs is missing"]
        if not missing
        else ["", "to install what is missing:", *(f"  {c}" for c in missing)]
    )
    return "\n".join(lines)


def _requirements() -> list[tuple[Requirement, str]]:
    """(requirement, extra) as the installed package declares them, or the checkout; ``dev`` is not for users."""
    try:
        declared = [Requirement(line) for line in metadata.requires("edgekd") or []]
    except metadata.PackageNotFoundError:
        declared = []
        path = Path(__file__).resolve().parents[1] / "pyproject.toml"
        if path.is_file():
            project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
            declared = [Requirement(line) for line in project["dependencies"]]
            for extra, lines in project["optional-dependencies"].items():
                declared += [Requirement(f"{line}; extra == '{extra}'") for line in lines]
    found: dict[str, tuple[Requirement, str]] = {}
    for requirement in declared:
        extra = next((extra for extra in EXTRAS if _only_with(requirement, extra)), "")
        if extra != "dev":
            found.setdefault(requirement.name, (requirement, extra))  # two extras may need the same
    return list(found.values())


def _only_with(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _package(requirement: Requirement, extra: str) -> dict[str, Any]:
    try:
        version: str | None = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        version = None
    fits = version is not None and requirement.specifier.contains(version, prereleases=True)
    wanted = f"{requirement.name}{requirement.specifier}"
    return {
        "name": requirement.name,
        "version": version,
        "wanted": wanted,
        "required": not extra,
        "advice": None if fits else _pip([wanted]),
    }


def _runtime(name: str, versions: dict[str, str]) -> dict[str, Any]:
    entry, lacks = runtimes.entry(name), runtimes.availability(name)
    return {
        "name": name,
        "file": entry.file,
        "version": None if lacks else versions[entry.package],
        "lacks": lacks,
        "converter": entry.extra if runtimes.converters(name) is None else None,
    }


def _pip(wanted: list[str]) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def _torch_gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def _disk(path: Path) -> dict[str, Any]:
    """Free space and whether one may write, at the nearest folder that exists."""
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    return {
        "path": str(path),
        "free_gib": round(shutil.disk_usage(there).free / 2**30, 1),
        "writable": os.access(there, os.W_OK),
    }
