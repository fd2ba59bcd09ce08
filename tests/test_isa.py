"""The same answers on another instruction set: what cannot be run is told, and what can be is run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import report_fixture
import test_ship
import tiny_bundle
from onnx import numpy_helper

from edgekd import machine, ship, store
from edgekd.cli import main
from edgekd.errors import AssetError, BenchError, MissingDependencyError, StoreError
from edgekd.isa import arm64, cpus, results, verify
from edgekd.isa.verify import compare
from edgekd.runtimes import ort_cpu
from edgekd.stages import verdict

HERE = cpus.Cpu("here")
TEXTS = test_ship.TEXTS
ROW = {"isa": "avx2", "cpu": "Haswell", "same": True}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that claims to be right on ``TEXTS``, which is its test split."""
    made = tiny_bundle.bundle(tmp_path)
    test_ship.claim(made, 1.0, tmp_path / "data.csv", TEXTS, test_ship.RIGHT)
    return made


def tool(folder: Path, name: str, script: str) -> None:
    """A program of this name, first in the path of a test that sets it to ``folder``."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def feeds() -> list[dict[str, np.ndarray]]:
    """Three examples of different lengths for ``tiny_bundle.model``."""
    rows = [np.array([[2, *[4 + i % 6 for i in range(n)], 3]]) for n in (1, 3, 6)]
    return [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in rows]


def by_definition(feed: dict[str, np.ndarray]) -> np.ndarray:
    vectors, head = (w.astype(np.float64) for w in tiny_bundle.weights())
    return vectors[feed["input_ids"][0]].mean(axis=0) @ head


def can_run(isa: str) -> None:
    """Skip the test, with the reason, where the instruction set cannot be run."""
    try:
        cpus.require(isa)
    except MissingDependencyError as error:
        pytest.skip(str(error))


# -------------------------------------------------------------------------------------------------------------- compare


def logits(labels: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[labels]


@pytest.mark.parametrize(("other", "same"), [(0, True), (1, True), (3, True), (4, False)])
def test_answers_are_the_same_if_no_more_differ_than_rounding_explains(other: int, same: bool) -> None:
    right = np.zeros(1000, np.int64)
    found = compare(logits([1] * other + [0] * (1000 - other)), logits([0] * 1000), right)
    assert found["same"] is same
    assert found["same_labels"] == 1000 - other
    assert found["score"] == pytest.approx(1 - other / 1000)
    assert (found["native_score"], found["examples"]) == (1.0, 1000)
    assert found["max_logit_difference"] == (1.0 if other else 0.0)


def test_equal_scores_by_other_labels_are_not_the_same_answers() -> None:
    found = compare(logits([0, 1] * 50), logits([1, 0] * 50), np.array([0, 0] * 50))
    assert found["score"] == found["native_score"] == 0.5
    assert not found["same"]


def test_logits_that_are_not_finite_are_other_answers() -> None:
    broken = logits([0, 1, 2])
    broken[0, 1] = np.nan
    found = compare(broken, logits([0, 1, 2]), np.array([0, 1, 2]))
    assert not found["same"] and found["max_logit_difference"] is None


# -------------------------------------------------------------------------------------------------------------- require


def test_without_vnni_the_reason_is_the_flag_that_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda root=None: frozenset({"avx2"}))
    with pytest.raises(MissingDependencyError, match=r"lacks avx512_vnni\|avx_vnni, which QEMU"):
        cpus.require("vnni")


@pytest.mark.parametrize("isa", ["avx2", "arm64"])
def test_without_qemu_the_reason_names_the_command_that_installs_it(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "isa", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get install -y --no-install-recommends qemu-user"):
        cpus.require(isa)


@pytest.mark.parametrize("said", ["qemu-x86_64 version 7.1.0 (Debian)", "qemu-x86_64 version 5.2", "nonsense", ""])
def test_a_qemu_without_avx2_is_refused(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "isa", lambda: "x86_64")
    tool(tmp_path, "qemu-x86_64", f"echo '{said}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"7\.2 is needed"):
        cpus.require("avx2")
    tool(tmp_path, "qemu-x86_64", "echo 'qemu-x86_64 version 10.0.2 (Debian 1:10.0.2+ds-2)'")
    cpus.require("avx2")


def test_without_the_arm64_python_the_reason_is_the_option_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "qemu-aarch64", "echo 'qemu-aarch64 version 8.0.0'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingDependencyError, match="--install"):
        cpus.require("arm64")


def test_on_another_architecture_x86_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "isa", lambda: "aarch64")
    with pytest.raises(MissingDependencyError, match="this machine is aarch64"):
        cpus.require("avx2")


# ---------------------------------------------------------------------------------------------------------------- arm64


def test_installing_needs_debians_tools_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="no apt-get"):
        arm64.install()


def test_a_download_that_fails_tells_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").touch()
    monkeypatch.setattr(arm64, "KEYRING", tmp_path / "keys")
    tool(tmp_path, "apt-get", "echo 'E: the network is down' >&2; exit 100")
    tool(tmp_path, "dpkg-deb", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(AssetError, match="the network is down"):
        arm64.install()
    assert not arm64.installed()
    assert list((tmp_path / "cache" / "isa").iterdir()) == []


def test_a_process_is_told_of_the_dot_product_on_cores_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    (arm64.folder() / "root" / "usr").mkdir(parents=True)
    told = {}
    for cpu in cpus.ISAS["arm64"]:
        prefix = tmp_path / cpu.model
        prefix.mkdir()
        python, env = arm64.python(prefix, cpu.model)
        told[cpu.model] = machine.cpu_flags(prefix)
        assert python.is_relative_to(env["PYTHONHOME"])
        assert (prefix / "usr").resolve() == arm64.folder() / "root" / "usr"
    assert "asimddp" in told["cortex-a76"] and "asimddp" not in told["cortex-a72"]
    assert all("asimd" in flags for flags in told.values())


# ------------------------------------------------------------------------------------------------------------------ run


def test_the_child_process_answers_as_the_definition(bundle: Path) -> None:
    found, _ = cpus.logits(HERE, bundle / "onnx/model_quantized.onnx", feeds(), {})
    np.testing.assert_allclose(found, [by_definition(feed) for feed in feeds()], rtol=1e-5)


def test_a_model_that_does_not_run_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(BenchError, match="does not run on here"):
        cpus.logits(HERE, tmp_path / "model.onnx", feeds(), {})


DISABLED = {"disabled_optimizers": ["DoubleQDQPairsRemover"]}


def rounding_twice() -> onnx.ModelProto:
    """``tiny_bundle.model`` with logits rounded twice, which onnxruntime does once, unless ``DISABLED``."""
    model = tiny_bundle.model()
    model.graph.node[-1].output[0] = "exact"
    steps = [("QuantizeLinear", "exact fine"), ("DequantizeLinear", "a fine"), ("QuantizeLinear", "b coarse")]
    for (kind, given), made in zip([*steps, ("DequantizeLinear", "c coarse")], ("a", "b", "c", "logits"), strict=True):
        model.graph.node.append(onnx.helper.make_node(kind, [*given.split(), "zero_point"], [made]))
    for name, number in {"fine": np.float32(0.05), "coarse": np.float32(0.07), "zero_point": np.uint8(128)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(number), name))
    return model


def test_the_child_process_runs_the_graph_that_the_options_of_the_session_ask_for(tmp_path: Path) -> None:
    onnx.save(rounding_twice(), tmp_path / "model.onnx")
    found = []
    for chosen in ({}, DISABLED):
        here = [ort_cpu.load(tmp_path / "model.onnx", 1, chosen).run(feed) for feed in feeds()]
        found.append(cpus.logits(HERE, tmp_path / "model.onnx", feeds(), chosen)[0])
        np.testing.assert_array_equal(found[-1], np.concatenate(here))
    assert not np.array_equal(*found)


def test_a_bundle_is_verified_with_the_options_of_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cpus.ISAS, "avx2", (cpus.Cpu("avx2"),))
    monkeypatch.setattr(machine, "isa", lambda: "x86_64")
    stage = tiny_bundle.export_stage(tmp_path / "export")
    onnx.save(rounding_twice(), stage / "student_qad" / "model.onnx")
    report = tiny_bundle.report() | {"session": DISABLED}
    bundle = ship.pack(report, stage, tmp_path / "dist")
    test_ship.claim(bundle, 1.0, tmp_path / "data.csv", TEXTS, test_ship.RIGHT)
    _, (row,) = verified(bundle, tmp_path / "runs", "avx2", capsys)
    assert row["max_logit_difference"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("cpu", [cpu for isa in ("avx2", "arm64") for cpu in cpus.ISAS[isa]], ids=lambda c: c.model)
def test_an_emulated_cpu_answers_as_the_definition(cpu: cpus.Cpu, bundle: Path) -> None:
    can_run(cpu.isa)
    found, version = cpus.logits(cpu, bundle / "onnx/model_quantized.onnx", feeds(), {})
    np.testing.assert_allclose(found, [by_definition(feed) for feed in feeds()], rtol=1e-5)
    assert version == arm64.onnxruntime_version()


@pytest.mark.slow
def test_a_haswell_has_avx2_and_nothing_that_came_later(tmp_path: Path) -> None:
    can_run("avx2")
    start, env = cpus.command(cpus.ISAS["avx2"][0], tmp_path)
    code = "from numpy._core._multiarray_umath import __cpu_features__ as f; print([k for k, v in f.items() if v])"
    done = subprocess.run([*start, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "'AVX2'" in done.stdout and "AVX512" not in done.stdout


# -------------------------------------------------------------------------------------------------------------- results


def test_what_was_found_belongs_to_one_file_and_one_cpu(tmp_path: Path) -> None:
    assert results.recorded(tmp_path, "ab") == []
    results.record(tmp_path, "ab", [ROW])
    results.record(tmp_path, "ab", [ROW | {"same": False}, ROW | {"isa": "arm64"}])
    assert results.recorded(tmp_path, "ab") == [ROW | {"isa": "arm64"}, ROW | {"same": False}]
    assert results.recorded(tmp_path, "cd") == []


def test_a_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / results.NAME).write_text("{")
    with pytest.raises(StoreError, match="delete it"):
        results.recorded(tmp_path, "ab")


def test_the_report_of_a_run_tells_what_was_found_of_exactly_its_file(tmp_path: Path) -> None:
    folders = report_fixture.folders(tmp_path / "store")
    for path in folders.values():
        store.write_json(path / store.MANIFEST, {"seconds": 1.0})
    given = {"machine": report_fixture.MACHINE, "versions": report_fixture.VERSIONS}
    store.write_json(folders["bench"] / "environment.json", given)
    (folders["export"] / "student_qad").mkdir()
    (folders["export"] / "student_qad" / "model.onnx").write_bytes(b"the file")
    stages = {name: store.Stage(name, "00", path) for name, path in folders.items()}
    run = tmp_path / "run"
    run.mkdir()
    results.record(run, hashlib.sha256(b"another file").hexdigest(), [report_fixture.OTHER])
    verdict.run(report_fixture.target(), stages, run)
    assert store.read_json(run / "report.json")["isa"] == []
    results.record(run, hashlib.sha256(b"the file").hexdigest(), [report_fixture.ISA])
    verdict.run(report_fixture.target(), stages, run)
    assert store.read_json(run / "report.json")["isa"] == [report_fixture.ISA]
    assert "256 of 256" in (run / "report.md").read_text()


# -------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    "options",
    [
        ["--isa", "sse"],
        ["--install"],
        ["--examples", "9"],
        ["--files-only", "--isa", "avx2"],
        ["--isa", "avx2", "--examples", "0"],
    ],
)
def test_options_that_make_no_sense_exit_with_2(options: list[str], bundle: Path) -> None:
    assert main(["verify", str(bundle), *options]) == 2


def test_what_cannot_be_run_is_skipped_with_12_and_the_reason(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["verify", str(bundle), "--isa", "arm64"]) == MissingDependencyError.exit_code
    assert "qemu-user" in capsys.readouterr().err


def verified(
    bundle: Path, runs: Path, isa: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and rows of ``edgekd verify --isa``."""
    given = json.loads((bundle / "manifest.json").read_text())
    (runs / given["run"]).mkdir(parents=True)
    code = main(["verify", str(bundle), "--isa", isa, "--examples", "6", "--store", str(runs), "--json"])
    out = json.loads(capsys.readouterr().out)["isa"]
    assert results.recorded(runs / given["run"], given["files"]["onnx/model_quantized.onnx"]["sha256"]) == sorted(
        out, key=lambda row: row["cpu"]
    )
    return code, out


def test_the_same_answers_are_a_row_beside_the_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cpus.ISAS, "avx2", (cpus.Cpu("avx2"),))  # this machine's own CPU, whatever it is
    monkeypatch.setattr(machine, "isa", lambda: "x86_64")
    code, (row,) = verified(bundle, tmp_path / "runs", "avx2", capsys)
    assert code == 0
    assert (row["same"], row["same_labels"], row["examples"], row["score"]) == (True, 6, 6, 1.0)
    assert row["max_logit_difference"] == 0.0


def test_other_answers_are_recorded_and_exit_with_11(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cpus.ISAS, "avx2", (cpus.Cpu("avx2"),))
    monkeypatch.setattr(machine, "isa", lambda: "x86_64")
    other = tiny_bundle.model()  # stands for kernels that compute something else
    head = next(tensor for tensor in other.graph.initializer if tensor.name == "head")
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), "head"))
    onnx.save(other, tmp_path / "other.onnx")
    monkeypatch.setattr(verify, "MODEL", tmp_path / "other.onnx")
    code, (row,) = verified(bundle, tmp_path / "runs", "avx2", capsys)
    assert code == 11
    assert not row["same"] and row["same_labels"] < 6


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "vnni", "arm64"])
def test_a_bundle_answers_the_same_on_every_instruction_set(
    isa: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    can_run(isa)
    code, rows = verified(bundle, tmp_path / "runs", isa, capsys)
    assert code == 0
    assert [row["same_labels"] for row in rows] == [6] * len(cpus.ISAS[isa])
    assert all(row["max_logit_difference"] < 1e-5 for row in rows)
