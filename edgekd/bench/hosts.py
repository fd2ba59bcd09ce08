"""The machine to measure on: this one, or whatever else answers the same questions (``edgekd.remote.device``)."""

from __future__ import annotations

from typing import Any, Protocol

from edgekd import machine, runtimes
from edgekd.bench import launch


class Host(Protocol):
    """What ``measure`` asks of a machine."""

    def usable_threads(self) -> int:
        """As ``machine.usable_threads``."""
        ...

    def pick_cpus(self, count: int) -> tuple[int, ...]:
        """As ``machine.pick_cpus``."""
        ...

    def availability(self, runtime: str) -> str | None:
        """``None`` if the runtime is installed there, else the command that installs it."""
        ...

    def identity(self, package: str) -> dict[str, str]:
        """What a kept result depends on besides job and files: the version of the runtime's package, for one."""
        ...

    def launch(self, job: dict[str, Any], wanted: str, timeout_s: float, calm_ns: int | None) -> dict[str, Any]:
        """As ``launch.launch``."""
        ...


class Here:
    """This machine."""

    def usable_threads(self) -> int:
        """Affinity and cgroup quota."""
        return machine.usable_threads()

    def pick_cpus(self, count: int) -> tuple[int, ...]:
        """The fastest that this process may use."""
        return machine.pick_cpus(count)

    def availability(self, runtime: str) -> str | None:
        """In this environment."""
        return runtimes.availability(runtime)

    def identity(self, package: str) -> dict[str, str]:
        """The machine is not part of it: results of this one are kept in a stage whose key has it."""
        return {package: runtimes.installed().get(package, "")}

    def launch(self, job: dict[str, Any], wanted: str, timeout_s: float, calm_ns: int | None) -> dict[str, Any]:
        """In a child of this process."""
        return launch.launch(job, wanted, timeout_s, calm_ns)


HERE = Here()
