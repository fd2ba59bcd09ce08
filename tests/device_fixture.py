"""A device for tests: an OpenSSH server on loopback, with a user, keys, an environment and folders of its own.

Only root can make a user, so whoever else runs the tests logs in as themselves; so does a root whose packages, or whose
every Python of this version, others may not read.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle

from edgekd import ship, store
from edgekd.report import devices
from edgekd.runtimes import converting

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
CALLS, ROUNDS = 6, 2
EXAMPLES = 12


@dataclass(frozen=True)
class Server:
    """``config`` is for ssh's ``-F``, ``python`` an interpreter with numpy and onnxruntime alone, made of the one
    at ``base``; ``home`` is the user's, with ``tmp``, where what the device keeps for the time being lies."""

    url: str
    user: str
    config: Path
    python: Path
    base: str
    home: Path
    folder: Path

    def environment(self, name: str, *packages: str) -> Path:
        """Another Python in the user's home (see ``environment``)."""
        return environment(self.home / name, *packages, base=self.base)

    @property
    def tmp(self) -> Path:
        return self.home / "tmp"

    def left(self) -> list[str]:
        """What lies in the device's temporary folder, once the agent had time to go."""
        for _ in range(100):
            if not (found := os.listdir(self.tmp)):
                break
            time.sleep(0.1)
        return found


def needed() -> None:
    """Skip where there is no OpenSSH."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's server and client: apt-get install openssh-server openssh-client")


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Serve on a free port until the block ends."""
    needed()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    wanted = [f"IdentityFile {folder}/user", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known_hosts"]
    (folder / "ssh_config").write_text(
        "\n".join([*wanted, "StrictHostKeyChecking yes", "GlobalKnownHostsFile none"]) + "\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, locks its own unprivileged half up
    with account() as (user, home, base):
        options = [
            f"Port {port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {home}/authorized_keys",
            "AuthenticationMethods publickey",
            "PermitRootLogin prohibit-password",
            "UsePAM no",
            "StrictModes no",  # the home lies under /tmp
            "PidFile none",
            f"SetEnv TMPDIR={home}/tmp",
        ]
        (folder / "sshd_config").write_text("\n".join(options) + "\n")
        shutil.copy(folder / "user.pub", home / "authorized_keys")
        python = environment(home / "env", "numpy", "onnxruntime", base=base)
        command = [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
        with (folder / "sshd.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                _wait(port, process, folder / "sshd.log")
                url = f"ssh://{user}@127.0.0.1:{port}"
                yield Server(url, user, folder / "ssh_config", python, base, home, folder)
            finally:
                process.terminate()


@contextmanager
def account() -> Iterator[tuple[str, Path, str]]:
    """(name, home, a Python that they may run) of a user who exists as long as the block, or of our own."""
    with tempfile.TemporaryDirectory(prefix="edgekd-device-") as folder:
        home, user = Path(folder), f"edgekd{os.getpid()}"
        (home / "tmp").mkdir()
        made = os.getuid() == 0 and _done(
            "useradd", "--home-dir", folder, "--password", "*", "--shell", "/bin/sh", user
        )
        try:
            base = _python(user) if made else None
            if base is not None:
                for path in (home, home / "tmp"):
                    shutil.chown(path, user)
            yield (getpass.getuser(), home, sys.executable) if base is None else (user, home, base)
        finally:
            if made:
                _done("userdel", "--force", user)


def _python(user: str) -> str | None:
    """A Python of this version with which ``user`` can import our packages: our own may lie in a home that is shut."""
    given = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); import numpy, onnxruntime"
    system = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
    return next((one for one in (sys.executable, system) if one and _done(one, "-c", given, user=user)), None)


def _done(*command: str, **other: Any) -> bool:
    """Whether the command can be run, and ends well."""
    try:
        return subprocess.run(command, cwd="/", capture_output=True, **other).returncode == 0
    except OSError:
        return False


def environment(folder: Path, *packages: str, base: str = sys.executable) -> Path:
    """A Python without anything but these packages of ours; neither edgekd nor what that stands on."""
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True)
    site = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for package in packages:
        for path in Path(sysconfig.get_path("purelib")).glob(f"{package}*"):
            if path.name.partition("-")[0].partition(".")[0] == package:
                (site / path.name).symlink_to(path)
    return folder / "bin" / "python"


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not run here: {log.read_text()[-300:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("sshd does not listen")


def runs(root: Path, mobile: bool = False, **device: Any) -> tuple[Path, Path]:
    """(bundle, store): a shipped run whose store still has teacher, fp32 student and inputs; ``device`` is changed.

    ``mobile``: with the files of onnxruntime's mobile format too.
    """
    report = tiny_bundle.report()
    report["device"] |= device
    key = store.key("export", 1, {})
    stage = store.Stage("export", key, store.folder(root / "runs", "export", key))
    with store.partial(root / "runs", stage, 1, {}) as folder:
        tiny_bundle.export_stage(folder)
        for name in ("teacher_fp32", "student_fp32"):
            (folder / name).mkdir()
            shutil.copy(folder / "student_qad" / "model.onnx", folder / name / "model.onnx")
        (folder / "inputs").mkdir()
        for name in ("teacher", "student"):
            np.savez(folder / "inputs" / f"{name}.npz", **inputs())
        store.finish(root / "runs", stage, made={"seconds": 1.0})
    report["stages"]["export"] |= {"folder": stage.path.name, "key": key}
    for row in report["rows"]:
        row["measured_on"] = devices.measured_on(report["device"]["missing"])
    report["rows"] = [row for row in report["rows"] if (row["runtime"], row["workload"]) == ("ort_cpu", "real")]
    conversions = {"ort_mobile": _converted(root / "runs", stage.path, report)} if mobile else {}
    return ship.pack(report, stage.path, root / "dist" / "tiny", conversions), root / "runs"


def _converted(runs: Path, export: Path, report: dict[str, Any]) -> Path:
    """The ``convert_ort_mobile`` stage: all artifacts are one model here."""
    folder = runs / "store" / "convert_ort_mobile-0"
    for name in ("student_qad", "teacher_fp32", "student_fp32"):
        (folder / name).mkdir(parents=True)
        made = folder / "student_qad" / "model.ort"
        if made.exists():
            shutil.copy(made, folder / name / made.name)
        else:
            assert "error" not in converting.convert("ort_mobile", export / name / "model.onnx", made, (8,))
        store.write_json(folder / name / "conversion.json", {})
    report["stages"]["convert_ort_mobile"] = {"key": "0", "folder": folder.name, "seconds": 1.0}
    report["rows"] += [row | {"runtime": "ort_mobile"} for row in report["rows"]]
    return folder


def inputs() -> dict[str, np.ndarray]:
    """A test split of the tiny bundle's words, labelled as its model answers, but for the last example."""
    vectors, head = tiny_bundle.weights()
    rng = np.random.default_rng(0)
    examples = [[2, *rng.integers(4, len(tiny_bundle.WORDS), 2 + i % 4), 3] for i in range(EXAMPLES)]
    labels = [int((vectors[ids].mean(axis=0) @ head).argmax()) for ids in examples]
    labels[-1] = (labels[-1] + 1) % head.shape[1]
    offsets = np.cumsum([0, *map(len, examples)])
    return {"ids": np.concatenate(examples).astype(np.int64), "offsets": offsets, "labels": np.array(labels)}
