"""What Linux knows about a process, this one or another: memory, CPU time, and who took the CPU from it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

MAX_STOLEN = 0.05
"""The share of its time that others may take from a process before what it timed counts as disturbed."""

MAX_NEIGHBOURS = 0.15
"""The share of the machine's CPU time that others may use meanwhile."""


def memory_mib(pid: int | None = None) -> tuple[float, float]:
    """(resident now, highest resident so far) in MiB of this or another process: VmRSS and VmHWM of its ``status``.

    ``ru_maxrss`` would not do: it keeps a peak from before ``exec``, that is, the parent's.
    """
    found = {}
    for line in (_folder(pid) / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    return found["VmRSS"], found["VmHWM"]


def reset_peak(pid: int | None = None) -> bool:
    """Lower VmHWM to the present VmRSS, so that a peak while importing is not the model's; False if not permitted."""
    try:
        (_folder(pid) / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process, by that signal, when its parent dies: so no child of a killed run is left.

    Exits at once if process ``parent`` is the parent no more: it has died before we could ask.
    """
    parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(parent_death_signal, int(by), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(frozen=True)
class Usage:
    """What a stretch of work used, and what went on beside it.

    ``waited_s`` is time in which a thread could have run but had to queue for a CPU, ``None`` on kernels that do not
    count it. ``busy_threads`` are the threads that ran at least a twentieth of the time. ``others_s`` is the CPU time
    that everybody else used on all ``cpus`` of the machine, the hypervisor included. ``ordered``: of another process,
    which sleeps between what it is told to do.
    """

    wall_s: float
    cpu_s: float
    waited_s: float | None
    voluntary_switches: int
    involuntary_switches: int
    busy_threads: int
    others_s: float
    cpus: int
    ordered: bool = False

    def stolen(self, threads: int, calls: int) -> float:
        """The share of the time (0 to 1) that others took from ``threads`` threads doing ``calls`` calls.

        The wait in the scheduler's queue; and for one thread that did not sleep in its calls, whatever it did not run
        for, which includes what a hypervisor gave to somebody else. A thread that sleeps by itself loses nothing.
        """
        lost = (self.waited_s or 0.0) / threads
        if threads == 1 and not self.ordered and self.voluntary_switches < calls / 10:
            lost = max(lost, self.wall_s - self.cpu_s)
        return lost / self.wall_s if self.wall_s > 0 else 0.0

    def neighbours(self) -> float:
        """The share (0 to 1) of the machine's CPU time that others used.

        A process on another CPU takes no time from this one, and yet shares its caches, its memory and its clock, and
        on a virtual machine often the very core.
        """
        return self.others_s / (self.wall_s * self.cpus) if self.wall_s > 0 else 0.0


class Meter:
    """Counts, of this process or of process ``pid``, from its making to ``stop()``."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid or os.getpid()
        self._tasks, self._busy, self._switches = _tasks(self._pid), _busy_s(), _switches(self._pid)
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> Usage:
        """What was used since."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        tasks, busy = _tasks(self._pid), _busy_s() - self._busy
        before = {task: self._tasks.get(task, (0, 0)) for task in tasks}
        spent = [(ran - before[task][0], wait - before[task][1]) for task, (ran, wait) in tasks.items()]
        voluntary, involuntary = (now - then for now, then in zip(_switches(self._pid), self._switches, strict=True))
        ordered = self._pid != os.getpid()
        theirs = sum(ran for ran, _ in spent) / 1e9 if ordered else 0.0
        cpus = os.cpu_count() or 1
        rounding = cpus / os.sysconf("SC_CLK_TCK")  # the kernel counts in ticks, for each CPU
        return Usage(
            wall_s=wall,
            cpu_s=theirs if ordered else cpu,
            waited_s=sum(wait for _, wait in spent) / 1e9 if tasks else None,
            voluntary_switches=voluntary,
            involuntary_switches=involuntary,
            busy_threads=sum(ran / 1e9 > wall / 20 for ran, _ in spent),
            others_s=max(0.0, busy - cpu - theirs - rounding),
            cpus=cpus,
            ordered=ordered,
        )


def _busy_s() -> float:
    """Seconds that all CPUs together were busy since boot, with the time that the hypervisor took."""
    try:
        with open("/proc/stat") as stream:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, stream.readline().split()[1:])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _folder(pid: int | None) -> Path:
    return PROC / str(pid or os.getpid())


def _switches(pid: int) -> tuple[int, int]:
    """How often a process went to sleep, and how often it was put off the CPU; of another one, its first thread."""
    if pid == os.getpid():
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_nvcsw, usage.ru_nivcsw
    lines = (line.partition(":") for line in (_folder(pid) / "status").read_text().splitlines())
    found = {name: value for name, _, value in lines}
    return int(found["voluntary_ctxt_switches"]), int(found["nonvoluntary_ctxt_switches"])


def _tasks(pid: int) -> dict[str, tuple[int, int]]:
    """Nanoseconds run and nanoseconds waited of every thread of a process."""
    found = {}
    try:
        for task in os.listdir(_folder(pid) / "task"):
            ran, waited, _ = (_folder(pid) / "task" / task / "schedstat").read_text().split()
            found[task] = (int(ran), int(waited))
    except (OSError, ValueError):
        return {}
    return found
