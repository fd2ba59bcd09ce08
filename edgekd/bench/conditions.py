"""How a machine is doing while it measures: heat, clock, free memory, load. Standard library; Linux's ``/sys``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgekd import machine

HOT_C = 75.0
"""From here on a small board is about to lower its clock."""

PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
SLOWED = 0xE
"""Of a Raspberry Pi's bits: the clock is capped, throttled, or at the soft limit of heat, now."""


def conditions(root: Path = machine.ROOT) -> dict[str, Any]:
    """What can be read; ``None`` for what the system does not say.

    ``temperature_c`` is the hottest zone's, ``frequency_mhz`` the first CPU's clock now, ``available_mib`` the memory
    that can be had without swapping, ``load`` the number of processes that wanted to run over the last minute,
    ``throttled`` whether the firmware holds the clock back now (Raspberry Pi), ``throttle_events`` how often it has
    since boot (x86).
    """
    frequency = _number(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return {
        "governor": machine.governor(root),
        "temperature_c": temperature_c(root),
        "frequency_mhz": None if frequency is None else frequency / 1000,
        "available_mib": _available_mib(root),
        "load": os.getloadavg()[0],
        "throttled": _throttled(root),
        "throttle_events": _events(root),
    }


def temperature_c(root: Path = machine.ROOT) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    zones = (_number(path) for path in root.glob("sys/class/thermal/thermal_zone*/temp"))
    found = [zone / 1000 for zone in zones if zone is not None and zone > 0]
    return max(found, default=None)


def throttled(before: dict[str, Any], after: dict[str, Any]) -> bool | None:
    """Whether the clock was held back between two ``conditions``; ``None`` where the system does not say."""
    counts = before["throttle_events"], after["throttle_events"]
    if after["throttled"] is None and None in counts:
        return None
    return bool(after["throttled"] or before["throttled"]) or (None not in counts and counts[1] > counts[0])


def _throttled(root: Path) -> bool | None:
    try:
        return bool(int((root / PI_THROTTLED).read_text(), 16) & SLOWED)
    except (OSError, ValueError):
        return None


def _events(root: Path) -> int | None:
    found = root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
    counts = [int(count) for path in found if (count := _number(path)) is not None]
    return sum(counts) if counts else None


def _available_mib(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # some zones answer with an error while their part of the chip sleeps
        return None
