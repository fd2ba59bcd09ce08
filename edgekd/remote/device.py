"""A device at the other end of a connection: what ``bench.hosts.Host`` asks, answered by ``remote.agent`` there."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from edgekd import runtimes, store
from edgekd.bench import launch
from edgekd.bench.spawn import CHILD, ChildFailed
from edgekd.errors import HostError, HostLostError, HostUnfitError, MissingDependencyError
from edgekd.progress import Progress
from edgekd.remote import harness, ssh

CHUNK = 1 << 18
CLOSING_S = 30.0


class Device:
    """An open connection, to be used in a ``with``: at its end the device removes all that was put there.

    ``what`` is the device's name in messages, ``command`` runs Python there, ``folder`` is where its temporary folder
    is made (``None``: where its system says). ``described`` is what ``agent.describe`` answered.

    Raises ``HostError`` where there is no connection, ``HostLostError`` where it breaks, ``HostUnfitError`` and
    ``MissingDependencyError`` for a device that cannot measure.
    """

    def __init__(self, what: str, command: Sequence[str], folder: str | None, progress: Progress) -> None:
        self.what, self._progress = what, progress
        self._there: dict[Path, str] = {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the connection)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # ctrl-C is for us; then we close the connection, and the device cleans up
            )
        except OSError as error:
            raise HostError(f"cannot run {command[0]} ({error}); install OpenSSH's client") from error
        try:
            self._greet(folder)
        except BaseException:
            self._close()
            raise

    def _greet(self, folder: str | None) -> None:
        nonce, program, archive = secrets.token_hex(8), harness.boot(), harness.archive()
        head = json.dumps({"nonce": nonce, "bytes": len(archive), "folder": folder}).encode()
        output = self._process.stdout
        assert output is not None
        with contextlib.suppress(HostLostError):  # what it says is the reason
            self._send(b"%d\n" % len(program) + program + head + b"\n" + archive)
        while line := output.readline():
            _, found, answer = line.partition(nonce.encode())  # a login script may have printed before, on the line too
            if found:
                self._accept(json.loads(answer))
                return
        code, said = self._process.wait(), self._said()
        if code == 255:
            raise HostError(f"cannot reach {self.what}: {said or 'no answer'}; {ssh.hint(said)}")
        if code in (126, 127):
            raise HostUnfitError(f"{self.what} runs no such Python ({said}); give the path of one there with --python")
        raise HostUnfitError(f"{self.what} did not start to measure (exit code {code}): {said or 'it said nothing'}")

    def _accept(self, greeting: dict[str, Any]) -> None:
        if "missing" in greeting:
            package, python = greeting["missing"], greeting["executable"]
            raise MissingDependencyError(
                f"{self.what} has no {package} for {python}; install it there: {python} -m pip install {package} "
                "onnxruntime, or give the Python that has it with --python"
            )
        if "unfit" in greeting:
            raise HostUnfitError(f"{self.what} cannot measure: {greeting['unfit']}; choose other --python or --folder")

    # ------------------------------------------------------------------------------------------------------- requests

    def ask(self, do: str, **request: Any) -> tuple[dict[str, Any], bytes]:
        """Ask, and wait for the answer; ``payload`` (bytes) is sent behind the request.

        Raises ``ChildFailed`` for a failed measurement.
        """
        payload: bytes = request.pop("payload", b"")
        self._send(json.dumps({"do": do, "bytes": len(payload), **request}).encode() + b"\n" + payload)
        return self._answer()

    def describe(self, names: Sequence[str], threads: Sequence[int]) -> dict[str, Any]:
        """Ask for all that is needed before anything is measured; kept in ``described``."""
        self.described, _ = self.ask("describe", runtimes=list(names), threads=list(threads))
        return self.described

    def put(self, path: Path) -> str:
        """Copy a file there unless it is there; its path there. What lies beside a model under its name goes along."""
        if path not in self._there:
            place, beside = str(len(self._there)), sorted(path.parent.glob(f"{path.name}*"))
            copied = {file.name: self._copy(file, place) for file in beside if file.is_file()}
            self._there[path] = copied[path.name]
        return self._there[path]

    def _copy(self, file: Path, place: str) -> str:
        size = file.stat().st_size
        request = {"do": "put", "folder": place, "name": file.name, "bytes": size, "sha256": store.sha256(file)}
        self._send(json.dumps(request).encode() + b"\n")
        with file.open("rb") as stream, self._progress.bar(f"copy {file.name}", total=size, unit="byte") as advance:
            while chunk := stream.read(CHUNK):
                self._send(chunk)
                advance(len(chunk))
        answer, _ = self._answer()
        return str(answer["path"])

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            self._lost()

    def _answer(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer: dict[str, Any] = json.loads(line)
            payload = self._process.stdout.read(answer.pop("bytes"))
        except (ValueError, KeyError, AttributeError):
            self._lost()
        if "failed" in answer:
            raise ChildFailed(answer["failed"])
        if "error" in answer:
            raise HostUnfitError(f"{self.what}: {answer['error']}")
        return answer, payload

    def _lost(self) -> NoReturn:
        said = self._said()
        raise HostLostError(
            f"lost {self.what}{f' ({said})' if said else ''}; what it has measured is kept: the same command goes on"
        )

    def _said(self) -> str:
        """The last line that ssh, or the device behind it, said."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    # ------------------------------------------------------------------------------------------------- bench.hosts.Host

    def usable_threads(self) -> int:
        """As the device says."""
        return int(self.described["usable_threads"])

    def pick_cpus(self, count: int) -> tuple[int, ...]:
        """As the device says."""
        return tuple(self.described["cpus"][str(count)])

    def availability(self, runtime: str) -> str | None:
        """As the device says; the command is for there."""
        if runtime not in self.described["lacking"]:
            return None
        package = runtimes.entry(runtime).package.replace("_", "-")
        return f"{self.described['executable']} -m pip install {package} (on the device)"

    def identity(self, package: str) -> dict[str, str]:
        """Another machine, another system or another library answers anew."""
        about = json.dumps(self.described["machine"], sort_keys=True)
        return {package: self.described["versions"].get(package, ""), "machine": about}

    def launch(self, job: dict[str, Any], wanted: str, timeout_s: float, calm_ns: int | None) -> dict[str, Any]:
        """In a child there; what it found is kept here."""
        samples = Path(job["samples"])
        samples.with_suffix(".json").unlink(missing_ok=True)
        return launch.keep(self.measure({**job, "calm_ns": calm_ns}, timeout_s, CHILD), samples, wanted)

    def measure(self, job: dict[str, Any], timeout_s: float, module: str) -> dict[str, Any]:
        """Run the job in a process of ``module`` there: its answer, and its samples where the job wants them, here."""
        there = {name: self.put(Path(job[name])) for name in ("model", "inputs")}
        found, samples = self.ask("measure", job={**job, **there}, timeout_s=timeout_s, module=module)
        store.write_bytes(Path(job["samples"]), samples)
        answer: dict[str, Any] = found["answer"]
        return answer

    # ---------------------------------------------------------------------------------------------------------- the end

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        """Hang up; the device then ends what it does and removes its folder, for which it gets ``CLOSING_S``."""
        with self._errors, self._process:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]
            try:
                self._process.wait(CLOSING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._progress.log(f"{self.what} does not hang up; the next `edgekd bench` there removes what it left")
