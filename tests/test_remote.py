"""A bundle measured over a real ssh connection, by a Python that has neither edgekd nor what it stands on."""

from __future__ import annotations

import getpass
import io
import json
import os
import pwd
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import device_fixture
import numpy as np
import pytest
import report_fixture as made
from device_fixture import CALLS, EXAMPLES, ROUNDS, Server
from hypothesis import given
from hypothesis import strategies as st
from test_doors import file_of, imports

from edgekd import spec
from edgekd.bench import child
from edgekd.bench.measure import Artifact
from edgekd.bench.rows import Cell, empty
from edgekd.cli import main
from edgekd.errors import BenchError, HostLostError, HostUnfitError, MissingDependencyError, UsageError
from edgekd.progress import Progress
from edgekd.remote import bench as benching
from edgekd.remote import device, harness, ssh
from edgekd.report import figures, schema

QUIET = Progress(quiet=True)
COMPARED = ("teacher_fp32", "student_fp32", "student_qad")
WHOLE = ("--rounds", str(ROUNDS))
SHORT = ("--rounds", "1", "--artifact", "student_qad")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with device_fixture.server(tmp_path_factory.mktemp("device")) as found:
        yield found


def bench(server: Server, bundle: Path, runs: Path, *more: str, python: Path | None = None) -> int:
    where = ["--on", server.url, "--ssh-config", str(server.config), "--python", str(python or server.python)]
    return main(["bench", str(bundle), *where, "--calls", str(CALLS), "--store", str(runs), *more])


def written(runs: Path) -> dict[str, int]:
    """Every answer that is kept, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in runs.glob("*/devices/*/raw/*.r*.json")}


def test_the_device_is_a_user_of_its_own_who_is_gone_afterwards(tmp_path: Path) -> None:
    (tmp_path / "some.bin").write_bytes(b"1" * 1000)
    with device_fixture.server(tmp_path) as found:
        if found.user == getpass.getuser():
            pytest.skip("needs to be root, and packages and a Python that others may read: see device_fixture")
        owner = pwd.getpwnam(found.user).pw_uid
        with device.Device("it", ssh.command(ssh.parse(found.url), str(found.python), found.config), None, QUIET) as it:
            assert Path(it.put(tmp_path / "some.bin")).stat().st_uid == owner != os.getuid()
        assert found.left() == []
    with pytest.raises(KeyError):
        pwd.getpwnam(found.user)
    assert not found.home.exists()


# ------------------------------------------------------------------------------------------------------------ measuring


def test_a_bundle_is_measured_over_ssh_and_the_rows_are_in_the_report_of_its_run(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, runs = device_fixture.runs(tmp_path)
    assert bench(server, bundle, runs, *WHOLE, "--name", "Board 7", "--sustained", "1s", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert server.left() == []

    report = schema.load(Path(found["report"]))
    mine = [row for row in report["rows"] if row["host"] == "Board 7"]
    assert [row["artifact"] for row in mine] == list(COMPARED)
    for row in mine:
        assert (row["measured_on"], row["rounds"], row["calls"]) == ("device", ROUNDS, CALLS)
        assert row["score"] == (EXAMPLES - 1) / EXAMPLES and row["agreement"] == 1.0 and row["p50_ms"] > 0
        assert not row["valid"] and "6 calls a round" in row["why_invalid"]  # the rules are the same there
        raw = Path(found["place"]) / "raw" / f"{row['artifact']}.ort_cpu.t1.real.r0.npz"
        with np.load(raw) as samples:
            assert len(samples["call_ns"]) == CALLS and samples["logits"].shape[0] == EXAMPLES
    assert len(written(runs)) == len(COMPARED) * ROUNDS
    (entry,) = report["devices"]
    assert entry["sustained"]["minutes"][0]["calls"] > 100 and entry["machine"]["isa"] == report["device"]["isa"]
    assert "python" in entry["versions"] and "rich" not in entry["versions"]
    own = [row for row in report["rows"] if row["host"] is None]
    assert own == schema.load(bundle / "report.json")["rows"]
    for name in ("report.md", "report.html"):
        assert "Board 7" in (runs / report["run"] / name).read_text()

    before = written(runs)
    assert bench(server, bundle, runs, *WHOLE, "--name", "Board 7") == 0
    assert written(runs) == before  # what was measured is not measured again


def test_a_device_is_asked_for_what_the_target_asks_for_whatever_the_host_could_measure() -> None:
    workloads = {"ort_cpu": ("real", "fixed64"), "openvino": ("real", "fixed16"), "ort_mobile": ("real",)}
    asked = spec.Bench(runtimes=tuple(workloads), threads=(1, 4), workloads=workloads)
    first = [row for row in made.rows() if (row["runtime"], row["workload"]) == ("ort_cpu", "real")]
    rows = [
        row | {"threads": count, "workload": name} for row in first for count in (1, 2) for name in workloads["ort_cpu"]
    ]
    skipped = Cell("openvino", 1, "real")  # of a runtime that the host lacks there is one row alone
    rows += [empty(row["artifact"], skipped, None, "skipped: pip install openvino") for row in first]
    report = made.report(rows, bench=asked)
    for runtimes in (None, ("openvino",)):
        plan = benching._plan(report, {"runtimes": {}}, benching.Asked(runtimes=runtimes))
        assert plan["threads"] == asked.threads
        assert plan["workloads"] == {name: workloads[name] for name in runtimes or ("ort_cpu", "openvino")}

    del report["device"]["threads"], report["device"]["workloads"]  # of a report from before they were kept
    plan = benching._plan(report, {"runtimes": {}}, benching.Asked())
    assert (plan["threads"], plan["workloads"]) == ((1, 2), {"ort_cpu": ("real", "fixed64"), "openvino": ("real",)})


def test_a_connection_that_breaks_leaves_nothing_there_and_the_same_command_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, runs = device_fixture.runs(tmp_path)
    whole, done = device.Device.measure, []

    def breaking(self: device.Device, *job: Any) -> Any:
        if len(done) == 4:
            self._process.kill()
        done.append(job)
        return whole(self, *job)

    with monkeypatch.context() as patched:
        patched.setattr(device.Device, "measure", breaking)
        assert bench(server, bundle, runs, *WHOLE) == HostLostError.exit_code
    assert "the same command goes on" in capsys.readouterr().err
    assert server.left() == []
    before = written(runs)
    assert len(before) == 4 and not list(runs.glob("*/report.json"))
    assert bench(server, bundle, runs, *WHOLE) == 0
    first_round = {name for name in before if ".r0." in name}  # what is compared is measured side by side: whole rounds
    assert len(first_round) == len(COMPARED)
    assert {name: at for name, at in written(runs).items() if name in first_round} == {
        n: before[n] for n in first_round
    }


@pytest.mark.parametrize("lost", [True, False], ids=["the connection breaks", "its process fails"])
def test_a_long_run_that_fails_leaves_in_the_report_what_was_measured_before(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    bundle, runs = device_fixture.runs(tmp_path)
    whole = device.Device.measure

    def failing(self: device.Device, job: dict[str, Any], timeout_s: float, module: str) -> Any:
        if module == "edgekd.bench.sustained" and lost:
            self._process.kill()
        elif module == "edgekd.bench.sustained":
            job = job | {"workload": "none"}
        return whole(self, job, timeout_s, module)

    monkeypatch.setattr(device.Device, "measure", failing)
    code = bench(server, bundle, runs, *SHORT, "--name", "Board 7", "--sustained", "1s")
    assert code == (HostLostError if lost else BenchError).exit_code
    report = schema.load(runs / "reuters_x86" / "report.json")
    (row,) = (row for row in report["rows"] if row["host"] == "Board 7")
    assert row["p50_ms"] > 0 and any(one.get("host") == "Board 7" for one in report["latency"])
    assert [one["sustained"] for one in report["devices"]] == [None]
    assert server.left() == []


def test_ctrl_c_ends_the_child_there_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    bundle, runs = device_fixture.runs(tmp_path)
    where = ["--on", server.url, "--ssh-config", str(server.config), "--python", str(server.python)]
    long = [*SHORT, "--calls", "5", "--sustained", "10m", "--store", str(runs)]
    command = [sys.executable, "-m", "edgekd", "bench", str(bundle), *where, *long]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit it ignored
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("sustained:"):
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(60) == 130, said
    assert server.left() == []
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(server.python) not in running


def test_what_a_killed_agent_leaves_is_removed_by_the_next(server: Server, tmp_path: Path) -> None:
    command = ssh.command(ssh.parse(server.url), str(server.python), server.config)
    with device.Device("it", command, None, QUIET) as one:
        path = tmp_path / "some.bin"
        path.write_bytes(b"1" * 1000)
        agent = Path(one.put(path)).parents[2]
        assert (agent / "lock").exists()
        with device.Device("it", command, None, QUIET):
            assert agent.exists()  # it lives: nobody touches its folder
        running = subprocess.run(["pgrep", "-f", f"^{server.python} -c"], capture_output=True, text=True, check=True)
        for number in running.stdout.split():
            os.kill(int(number), signal.SIGKILL)
        with pytest.raises(HostLostError):
            one.ask("conditions")
    assert agent.exists()
    with device.Device("it", command, None, QUIET):
        assert not agent.exists()
    assert server.left() == []


def test_every_runtime_is_given_its_own_file_and_what_is_missing_there_says_what_installs_it(
    server: Server, tmp_path: Path
) -> None:
    bundle, runs = device_fixture.runs(tmp_path, mobile=True)
    given = ("--runtime", "ort_mobile", "--runtime", "openvino")
    assert bench(server, bundle, runs, *SHORT, *given, "--name", "Board 7") == 0
    report = schema.load(runs / "reuters_x86" / "report.json")
    mobile, skipped = (row for row in report["rows"] if row["host"])
    assert mobile["size_bytes"] == (bundle / "ort_mobile" / "model.ort").stat().st_size
    assert mobile["score"] == (EXAMPLES - 1) / EXAMPLES and mobile["p50_ms"] > 0
    assert skipped["why_invalid"] == f"skipped: {server.python} -m pip install openvino (on the device)"


def test_without_the_runs_store_the_bundle_is_measured_alone_and_its_report_begins_a_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = device_fixture.runs(tmp_path)
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, **device_fixture.inputs())
    monkeypatch.setattr(benching, "_inputs", lambda *given: inputs)  # the data's source is a package index
    assert bench(server, bundle, tmp_path / "elsewhere", *SHORT) == 0
    report = schema.load(tmp_path / "elsewhere" / "reuters_x86" / "report.json")
    mine = [row for row in report["rows"] if row["host"]]
    assert [row["artifact"] for row in mine] == ["student_qad"] and mine[0]["speedup_vs_teacher"] is None


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_a_device_out_of_reach_is_told_with_what_to_do(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, runs = device_fixture.runs(tmp_path)

    def fails(url: str, config: Path) -> str:
        given = ["--on", url, "--ssh-config", str(config), "--store", str(runs)]
        assert main(["bench", str(bundle), *given]) == 13
        return capsys.readouterr().err

    assert "Connection refused" in fails("ssh://root@127.0.0.1:1", server.config)
    own = server.config.read_text()
    (tmp_path / "no_key").write_text(own.replace(f"{server.folder}/user", f"{server.folder}/none"))
    assert "ssh-copy-id" in fails(server.url, tmp_path / "no_key")
    (tmp_path / "unknown").write_text(own.replace("/known_hosts", "/no_hosts"))
    assert "connect once with ssh yourself" in fails(server.url, tmp_path / "unknown")
    assert not runs.joinpath("reuters_x86").exists()


def test_a_wrong_architecture_and_a_device_without_room_are_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "aarch64" if os.uname().machine != "aarch64" else "x86_64"
    bundle, runs = device_fixture.runs(tmp_path, isa=other)
    assert bench(server, bundle, runs) == HostUnfitError.exit_code
    assert f"the bundle is for {other}" in capsys.readouterr().err
    assert bench(server, bundle, runs, "--folder", "/no/such/folder") == HostUnfitError.exit_code
    assert "there is no folder /no/such/folder" in capsys.readouterr().err
    assert server.left() == []


def test_a_missing_runtime_numpy_or_python_is_told_with_the_command_that_installs_it(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, runs = device_fixture.runs(tmp_path)
    bare = server.environment("bare")
    assert bench(server, bundle, runs, python=bare) == 12
    assert f"{bare} -m pip install numpy" in capsys.readouterr().err
    numpy_only = server.environment("numpy", "numpy")
    assert bench(server, bundle, runs, python=numpy_only) == 12
    assert f"{numpy_only} -m pip install onnxruntime" in capsys.readouterr().err
    assert bench(server, bundle, runs, python=server.home / "nowhere") == HostUnfitError.exit_code
    assert "--python" in capsys.readouterr().err
    old = server.home / "old_python"
    old.write_text(
        f"#!/bin/sh\nexec {server.python} -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])' \"$2\"\n"
    )
    old.chmod(0o755)
    assert bench(server, bundle, runs, python=old) == HostUnfitError.exit_code
    assert "is Python 3.9.2; 3.11 or later is needed" in capsys.readouterr().err
    assert server.left() == []


def test_a_device_that_lacks_a_feature_is_measured_and_marked_everywhere(server: Server, tmp_path: Path) -> None:
    bundle, runs = device_fixture.runs(tmp_path, features=["no_such_flag"], missing=["no_such_flag"])
    assert bench(server, bundle, runs, *SHORT, "--name", "Board 7") == 0
    report = schema.load(runs / "reuters_x86" / "report.json")
    assert {row["measured_on"] for row in report["rows"]} == {figures.PROXY}
    assert f"Times and memory are a stand-in's ({figures.PROXY})" in report["headline"][0]
    assert any(line.startswith("host-proxy: Board 7 lacks no_such_flag") for line in report["limits"])


@pytest.mark.parametrize("runtimes", [("litert",), ("ort_cpu", "litert")])
def test_an_old_onnxruntime_is_refused_for_what_runs_in_it_alone(runtimes: tuple[str, ...]) -> None:
    there = {
        **{"machine": made.MACHINE, "conditions": dict.fromkeys(("available_mib", "temperature_c", "throttled"))},
        **{"usable_threads": 4, "executable": "python3", "lacking": [], "free_bytes": 2**40},
        "versions": {"onnxruntime": "1.9.0", "ai_edge_litert": "2.1.0"},
    }
    manifest = {"minimum_onnxruntime": "1.11", "device": None}
    nothing = Artifact("student_qad", (), Path())
    if "ort_cpu" in runtimes:
        with pytest.raises(MissingDependencyError, match=r"has onnxruntime 1\.9\.0, and the bundle needs 1\.11"):
            benching._fit("it", there, manifest, runtimes, [nothing], QUIET)
    else:
        assert benching._fit("it", there, manifest, runtimes, [nothing], QUIET) == []


# ---------------------------------------------------------------------------------------------------------- the harness


def test_the_harness_holds_all_that_its_modules_import_of_ours() -> None:
    with zipfile.ZipFile(io.BytesIO(harness.archive())) as file:
        names = set(file.namelist())
    assert harness.archive() == harness.archive.__wrapped__()
    root = Path(harness.__file__).parents[1]
    for name in sorted(names):
        if not name.startswith("edgekd/runtimes/") or name.endswith("__init__.py"):
            used = {file_of(m) for m in imports(root.parent / name) if m.startswith("edgekd.")} - {None}
            assert {f"edgekd/{one}" for one in used} <= names, name


def test_a_crash_over_there_is_a_reason_and_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    np.savez(tmp_path / "in.npz", **device_fixture.inputs())
    job = {"runtime": "ort_cpu", "model": str(tmp_path / "model.onnx"), "inputs": str(tmp_path / "in.npz")}
    job |= {"workload": "real", "threads": 1, "cpus": [], "calls": 3, "warmup": child.WARMUP, "score": False}
    with device.Device("here", ssh.here(), None, QUIET) as here:
        with pytest.raises(device.ChildFailed, match=r"InvalidProtobuf|Protobuf|parsing"):
            here.launch({**job, "samples": str(tmp_path / "s.npz")}, "", 60, None)
        for name, told in (("../../up", "no name for a file"), ("fine", "came damaged")):
            with pytest.raises(HostUnfitError, match=told):
                here.ask("put", folder="x", name=name, sha256="0", payload=b"1234")
        here.describe(["ort_cpu"], [1])  # the connection has survived both
    assert not list(tmp_path.glob("s.*"))


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("ssh://pi@192.168.1.7", "pi", "192.168.1.7", None),
        ("ssh://board", None, "board", None),
        ("ssh://a.b-c@my-board.local:2222", "a.b-c", "my-board.local", 2222),
        ("ssh://pi@[fe80::1%eth0]:22", "pi", "fe80::1%eth0", 22),
    ],
)
def test_an_address_is_read_as_ssh_would(text: str, user: str | None, host: str, port: int | None) -> None:
    assert ssh.parse(text) == ssh.Address(host, user, port)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "pi@board",
            "http://board",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://pi@-x",
            "ssh://-l@board",
            "ssh://@board",
        ),
        *(
            "ssh://a b@board",
            "ssh://board;ls",
            "ssh://$(ls)@board",
            "ssh://board/path",
            "ssh://board:0",
            "ssh://board:x",
        ),
        *("ssh://pi:secret@board", "ssh://board?x", "ssh://board\n", "ssh://boa'rd"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_started(text: str) -> None:
    with pytest.raises(UsageError):
        ssh.parse(text)


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_text_of_a_user_is_an_option_or_more_than_a_word_to_a_shell(address: str, python: str) -> None:
    try:
        words = ssh.command(ssh.parse(f"ssh://{address}"), python)
    except UsageError:
        return
    end = words.index("--")
    assert len(words) == end + 3 and not words[end + 1].startswith("-")
    assert words[end + 2] == f"exec {python} -c '{ssh.FETCH}'"
    assert not set(python) & set(" \t\n'\"\\$`;&|<>(){}*?!#") and not python.startswith("-")
