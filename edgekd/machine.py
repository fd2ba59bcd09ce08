"""What this machine is, as far as a latency depends on it. Standard library only; reads ``/proc`` and ``/sys``.

Every reader takes ``root``, the folder that stands for ``/``, so that a test can describe another machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd.devices import X86_AVX2, X86_VNNI, Device

ROOT = Path("/")

RELEVANT_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""The CPU flags, as Linux spells them, that decide which matrix kernels a runtime picks."""


def fingerprint(root: Path = ROOT) -> dict[str, object]:
    """The machine as plain JSON data: equal on every call until hardware, limits or system change.

    ``cores`` are physical and ``logical_cpus`` what Linux schedules on; ``affinity`` counts the CPUs this process may
    use, ``quota`` is the cgroup's limit in CPUs (``None``: none), ``threads`` what may really run at once.
    ``memory_mib`` is the smaller of the machine's and the cgroup's, rounded to 64 MiB because kernels of one machine
    differ by less.
    """
    return {
        "cpu": cpu_model(root),
        "isa": isa(),
        "flags": [flag for flag in RELEVANT_FLAGS if flag in cpu_flags(root)],
        "cores": len({_siblings(cpu, root) for cpu in range(os.cpu_count() or 1)}),
        "logical_cpus": os.cpu_count() or 1,
        "affinity": len(affinity()),
        "quota": cpu_quota(root),
        "threads": usable_threads(root=root),
        "memory_mib": 64 * round(memory_mib(root) / 64),
        "os": _os_name(root),
        "kernel": platform.release(),
        "governor": governor(root),
        "python": platform.python_version(),
    }


# ----------------------------------------------------------------------------------------------------------------- CPU


def isa() -> str:
    """The instruction set: ``x86_64``, ``aarch64``, or whatever else the system calls it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def instruction_set(root: Path = ROOT) -> str | None:
    """Whose integer kernels run here, in the words of ``edgekd verify --isa``; ``None``: neither vnni, avx2 nor arm64.

    A CPU with AVX512 and without VNNI counts as ``avx2``: it multiplies bytes by the same saturating instruction.
    """
    if isa() == "aarch64":
        return "arm64"
    kinds = (("vnni", X86_VNNI), ("avx2", X86_AVX2))
    return next((name for name, device in kinds if not missing_features(device, root)), None)


def cpu_model(root: Path = ROOT) -> str:
    """The name of the CPU or, where Linux on ARM knows none, of the board."""
    names = dict(_cpuinfo(root))
    board = _read(root / "proc/device-tree/model").rstrip("\0")
    return names.get("model name") or board or names.get("Hardware") or platform.processor() or "unknown"


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """The flags that every CPU has (cores of one machine can differ)."""
    lines = [frozenset(value.split()) for name, value in _cpuinfo(root) if name in ("flags", "Features")]
    return frozenset.intersection(*lines) if lines else frozenset()


BF16 = ("avx512_bf16", "amx_bf16")
"""Flags of which each says that a CPU has instructions for bfloat16 products."""


def multiplies_bf16(root: Path = ROOT) -> bool:
    """Whether the CPU has instructions for bfloat16 products; without them bf16 is slower than float32, not faster."""
    return not cpu_flags(root).isdisjoint(BF16)


def missing_features(device: Device, root: Path = ROOT) -> list[str]:
    """What tells ``device`` from this machine (``Device.differs``).

    Empty when a figure taken here may speak for the device; otherwise this machine is only a stand-in.
    """
    return device.differs(isa(), cpu_flags(root))


def stand_in(lacks: Sequence[str]) -> str:
    """What a machine is that differs from a device by ``lacks`` (see ``missing_features``)."""
    return f"only a stand-in (the device has {', '.join(lacks)})"


def governor(root: Path = ROOT) -> str | None:
    """How the first CPU's frequency is governed; ``None`` where the system does not say (virtual machines)."""
    return _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None


def affinity() -> tuple[int, ...]:
    """The CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # pragma: no cover (not Linux)


def usable_threads(profile: int | None = None, root: Path = ROOT) -> int:
    """min(``profile``, affinity, cgroup quota), at least 1: more threads than this only take turns."""
    limits = (profile, len(affinity()), cpu_quota(root))
    return max(1, int(min(limit for limit in limits if limit is not None)))


def pick_cpus(count: int, root: Path = ROOT) -> tuple[int, ...]:
    """``count`` CPUs of the affinity to measure on: the fastest cores, one thread a core while cores last.

    Among equals the highest numbers come first, since interrupts and system work gather on the first CPU.
    """
    ranked = sorted(affinity(), key=lambda cpu: (_speed(cpu, root), cpu), reverse=True)
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for cpu in ranked:
        core = _siblings(cpu, root)
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return tuple(sorted((first + second)[:count]))


def _speed(cpu: int, root: Path) -> int:
    folder = root / f"sys/devices/system/cpu/cpu{cpu}"
    return int(_read(folder / "cpufreq/cpuinfo_max_freq") or _read(folder / "cpu_capacity") or 0)


def _siblings(cpu: int, root: Path) -> str:
    return _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _cpuinfo(root: Path) -> Iterator[tuple[str, str]]:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, separator, value = line.partition(":")
        if separator:
            yield name.strip(), value.strip()


# -------------------------------------------------------------------------------------------------------------- limits


def cpu_quota(root: Path = ROOT) -> float | None:
    """The CPU time per time that the cgroup (version 1 or 2) and its parents allow, in CPUs; ``None`` if unlimited."""
    limits = []
    for folder in _cgroup_folders("cpu", root):
        if text := _read(folder / "cpu.max"):  # version 2: "max 100000" or "150000 100000"
            quota, _, period = text.partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota not in ("", "max", "-1") and float(period or 100_000) > 0:
            limits.append(float(quota) / float(period or 100_000))
    return min(limits) if limits else None


def memory_mib(root: Path = ROOT) -> int:
    """The memory that this process can have: the machine's, or the cgroup's if that is less. 0 if unknown."""
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            found.append(int(line.split()[1]) // 1024)
    for folder in _cgroup_folders("memory", root):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if text.isdigit():
            found.append(int(text) // 2**20)
    return min(found) if found else 0


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders that can limit this process: its own cgroup's and every parent's, in both hierarchies.

    Inside a container ``/proc/self/cgroup`` may name a path of the host that is not mounted here; then the mount's own
    root, which a parent of every path, is the container's limit.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
            mount = next((folder for folder in mounts if folder.is_dir()), mounts[0])
        else:
            continue
        parts = [part for part in name.split("/") if part not in ("", "..")]
        yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


# ----------------------------------------------------------------------------------------------------------------- GPU


def gpu() -> dict[str, object] | None:
    """``name``, ``memory_mib`` and ``driver`` of the first NVIDIA GPU and their ``count``; ``None`` without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # the tool without a driver or a device behind it
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    if not rows:
        return None
    name, memory, driver = rows[0]
    return {"name": name, "memory_mib": int(memory) if memory.isdigit() else 0, "driver": driver, "count": len(rows)}


def _os_name(root: Path) -> str:
    for line in _read(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
