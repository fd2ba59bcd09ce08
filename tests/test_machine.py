"""What the machine is, read from folders that stand for other machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd import machine, spec, store

X86 = "model name\t: Some CPU\nflags\t\t: fpu avx2 {}\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_fingerprint_is_plain_data_and_the_same_every_time():
    first = machine.fingerprint()
    assert machine.fingerprint() == first
    assert json.loads(json.dumps(first)) == first
    store.canonical(first)  # can be part of a key
    assert {"cpu", "isa", "flags", "cores", "threads", "memory_mib", "os", "kernel", "governor", "python"} <= set(first)
    assert first["threads"] >= 1 and first["memory_mib"] > 0


def test_an_unknown_machine_still_has_a_fingerprint(tmp_path):
    assert machine.fingerprint(tmp_path)["threads"] >= 1


def test_a_flag_counts_only_if_every_cpu_has_it(tmp_path):
    root = write(tmp_path, {"proc/cpuinfo": X86.format("avx512_vnni") + "\n" + X86.format("")})
    assert machine.cpu_flags(root) == {"fpu", "avx2"}
    assert machine.cpu_model(root) == "Some CPU"


def test_an_arm_board_is_named_by_its_device_tree(tmp_path):
    files = {"proc/cpuinfo": "Features\t: fp asimd asimddp\n", "proc/device-tree/model": "Raspberry Pi 5\0"}
    root = write(tmp_path, files)
    assert machine.cpu_model(root) == "Raspberry Pi 5"
    assert "asimddp" in machine.cpu_flags(root)


def test_a_feature_written_with_a_bar_is_met_by_either(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "isa", lambda: "x86_64")
    for flag, missing in (("avx512_vnni", []), ("avx_vnni", []), ("", ["avx512_vnni|avx_vnni"])):
        root = write(tmp_path, {"proc/cpuinfo": X86.format(flag)})
        assert machine.missing_features(spec.X86_VNNI, root) == missing


@pytest.mark.parametrize(
    ("isa", "flags", "found"),
    [
        *(
            ("x86_64", "avx2 avx_vnni", "vnni"),
            ("x86_64", "avx2 avx512f avx512_vnni", "vnni"),
            ("x86_64", "avx2", "avx2"),
        ),
        *(
            ("x86_64", "avx2 avx512f", "avx2"),
            ("x86_64", "avx", None),
            ("aarch64", "asimd", "arm64"),
            ("riscv64", "", None),
        ),
    ],
)
def test_the_instruction_set_is_that_of_the_integer_kernels(isa, flags, found, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "isa", lambda: isa)
    assert machine.instruction_set(write(tmp_path, {"proc/cpuinfo": f"flags\t: {flags}\n"})) == found


def test_a_faster_cpu_is_no_stand_in_for_one_without_the_dot_product_or_vnni(tmp_path, monkeypatch):
    for isa, device, flags, missing in (
        ("aarch64", spec.RASPBERRY_PI_4, "asimd", []),
        ("aarch64", spec.RASPBERRY_PI_4, "asimd asimddp", ["no asimddp"]),
        ("aarch64", spec.RASPBERRY_PI_5, "asimd", ["asimddp"]),
        ("x86_64", spec.X86_AVX2, "avx2", []),
        ("x86_64", spec.X86_AVX2, "avx2 avx_vnni", ["no avx_vnni"]),
    ):
        monkeypatch.setattr(machine, "isa", lambda isa=isa: isa)
        root = write(tmp_path, {"proc/cpuinfo": f"flags\t: {flags}\n"})
        assert machine.missing_features(device, root) == missing


def test_another_instruction_set_is_what_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "isa", lambda: "x86_64")
    assert machine.missing_features(spec.ARM64_DOTPROD) == ["aarch64"]


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "150000 100000\n"}, 1.5),
        # the limit may be a parent's ...
        (
            {
                "proc/self/cgroup": "0::/all/job\n",
                "sys/fs/cgroup/all/cpu.max": "200000 100000",
                "sys/fs/cgroup/all/job/cpu.max": "max 100000",
            },
            2.0,
        ),
        # ... or, in a container, that of the mounted root, under a path that is the host's
        ({"proc/self/cgroup": "0::/../host/path\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/box\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_quota_is_the_tightest_of_the_cgroup_and_its_parents(tmp_path, files, quota):
    assert machine.cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(("limit", "mib"), [("max", 8000), ("1073741824", 1024), ("9223372036854771712", 8000)])
def test_memory_is_the_machines_or_the_cgroups_if_that_is_less(tmp_path, limit, mib):
    files = {"proc/meminfo": f"MemTotal: {8000 * 1024} kB\n", "proc/self/cgroup": "0::/a\n"}
    assert machine.memory_mib(write(tmp_path, {**files, "sys/fs/cgroup/a/memory.max": limit})) == mib


@pytest.mark.parametrize(
    ("profile", "cpus", "quota", "expected"),
    [
        (None, 8, None, 8),
        (4, 8, None, 4),
        (4, 2, None, 2),
        (4, 8, "350000", 3),
        (None, 8, "50000", 1),
        (16, 8, None, 8),
    ],
)
def test_usable_threads_are_the_least_of_profile_affinity_and_quota(
    tmp_path, monkeypatch, profile, cpus, quota, expected
):
    monkeypatch.setattr(machine, "affinity", lambda: tuple(range(cpus)))
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota or 'max'} 100000"}
    assert machine.usable_threads(profile, write(tmp_path, files)) == expected


def test_under_an_affinity_of_one_cpu_one_thread_is_usable():
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}]); from edgekd import machine; "
        "print(machine.usable_threads(4), machine.pick_cpus(4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", f"({one},)"]


def test_cpus_are_picked_on_distinct_and_fast_cores_first(tmp_path, monkeypatch):
    # CPUs 0 and 1 share a slow core, 2 and 3 as well; 4 and 5 share a fast one.
    monkeypatch.setattr(machine, "affinity", lambda: (0, 1, 2, 3, 4, 5))
    files = {}
    for cpu, (siblings, speed) in enumerate([("0-1", 2), ("0-1", 2), ("2-3", 2), ("2-3", 2), ("4-5", 3), ("4-5", 3)]):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = siblings
        files[f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = str(speed)
    root = write(tmp_path, files)
    assert machine.pick_cpus(1, root) == (5,)
    assert machine.pick_cpus(3, root) == (1, 3, 5)
    assert machine.pick_cpus(9, root) == (0, 1, 2, 3, 4, 5)


def _fake_smi(tmp_path, monkeypatch, script: str) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_a_gpu_is_described_by_nvidia_smi(tmp_path, monkeypatch):
    _fake_smi(tmp_path, monkeypatch, "printf 'NVIDIA H100, 81559, 550.1\\nNVIDIA H100, 81559, 550.1\\n'")
    assert machine.gpu() == {"name": "NVIDIA H100", "memory_mib": 81559, "driver": "550.1", "count": 2}


@pytest.mark.parametrize("script", ["echo 'NVIDIA-SMI has failed'; exit 9", "echo 'No devices were found'", "true"])
def test_nvidia_smi_without_a_gpu_behind_it_is_no_gpu(tmp_path, monkeypatch, script):
    _fake_smi(tmp_path, monkeypatch, script)
    assert machine.gpu() is None


def test_no_nvidia_smi_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu() is None


def test_knowing_the_machine_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from edgekd import machine; machine.fingerprint(); machine.gpu(); "
        "raise SystemExit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
