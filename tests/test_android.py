"""Phones: the commands of a bundle's card, run against a false ``adb``, and what is read of what they print."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import device_fixture
import numpy as np
import onnx
import pytest
import report_fixture as made
import tiny_bundle
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import numpy_helper

from edgekd import graph, ship, spec
from edgekd.bench.rows import Cell
from edgekd.bundle import MODEL
from edgekd.cli import main
from edgekd.errors import DataError, UsageError
from edgekd.report import android, schema

HEAD = f"edgekd model={'a' * 64} export={'0' * 16}\n"
HEAD += "device Pixel 8\nandroid 15\nabi arm64-v8a\nFeatures\t: fp asimd asimddp\n"

ONNXRUNTIME = """Setting intra_op_num_threads to 1
Session creation time cost: {load} s
First inference time cost: 2 ms
Total inference time cost: 0.5 s
Total inference requests: {calls}
Average inference time cost total: 0.533 ms
Total inference run time: 0.51 s
Number of inferences per second: {rate}
Avg CPU usage: 98 %
Peak working set size: 50905088 bytes
Runs:{calls}
Min Latency: 0.0001 s
Max Latency: 0.9 s
P50 Latency: {p50} s
P90 Latency: {p90} s
P95 Latency: 0.8 s
P99 Latency: {p99} s
P999 Latency: 0.9 s
"""

LITERT = """INFO: STARTING!
INFO: Signature to run: [tokens_64]
INFO: Running benchmark for at least 50 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=271 first=9876 curr=1840 min=1801 max=9876 avg=1900.5 std=478 p5=1811 median=1852 p95=2090

INFO: count={calls} first=1850 curr=1843 min=1799 max=2306 avg={avg} std=51 p5=1812 median={median} p95=1944
INFO: Inference timings in us: Init: {init}, First inference: {first}, Warmup (avg): 1900.5, Inference (avg): {avg}
INFO: Memory footprint delta from the start of the tool (MB): init=3.25 overall=8.5
"""


def ort(p50: float = 0.0005, calls: int = 1000) -> str:
    return ONNXRUNTIME.format(load=0.0317, calls=calls, rate=1877.5, p50=p50, p90=2 * p50, p99=3 * p50)


def litert(median: float = 1850.0, calls: int = 1000) -> str:
    return LITERT.format(calls=calls, avg=1860.2, median=median, init=4108, first=9876)


def start(runtime: str = "ort_cpu") -> str:
    return f"round runtime={runtime} threads=1 workload=fixed64\n"


GOOD = HEAD + "".join(start() + ort() + start("litert") + litert() for _ in range(5))

# -------------------------------------------------------------------------------------------------------------- reading


def test_what_both_tools_print_is_read_in_milliseconds() -> None:
    found = android.parse(GOOD.replace("\n", "\r\n"))  # as adb has it
    assert (found["device"], found["android"], found["isa"]) == ("Pixel 8", "15", "aarch64")
    assert found["flags"] == ["fp", "asimd", "asimddp"]
    onnxruntime, lite = (found["rounds"][Cell(name, 1, "fixed64")] for name in ("ort_cpu", "litert"))
    assert len(onnxruntime) == len(lite) == 5
    told = {"p50_ms": 0.5, "p90_ms": 1.0, "p99_ms": 1.5, "load_ms": 31.7, "cold_ms": None, "calls": 1000}
    assert onnxruntime[0] == pytest.approx(told | {"throughput_per_s": 1877.5})
    expected = {"p50_ms": 1.85, "load_ms": 4.108, "cold_ms": 9.876, "throughput_per_s": 1e6 / 1860.2, "calls": 1000}
    assert {name: lite[0][name] for name in expected} == pytest.approx(expected)
    assert lite[0]["p90_ms"] is lite[0]["p99_ms"] is None


@given(st.lists(st.floats(1e-6, 10, allow_subnormal=False), min_size=1, max_size=7))
def test_a_row_is_the_median_of_the_rounds_and_valid_by_the_rules_that_can_be_applied(p50: list[float]) -> None:
    text = HEAD + "".join(start() + ort(value) for value in p50)
    (row,) = android.table(android.parse(text), {"ort_cpu": 2**20})
    assert row["p50_ms"] == pytest.approx(1000 * float(np.median(p50)))
    assert row["round_p50_ms"] == pytest.approx([1000 * value for value in p50])
    low, middle, high = np.quantile(p50, [0.25, 0.5, 0.75])
    assert row["valid"] == (len(p50) >= 5 and (high - low) / middle <= 0.1)
    assert row["score"] is None and row["size_mib"] == 1.0


@given(st.data())
def test_a_damaged_text_is_read_or_refused_and_never_anything_else(data: st.DataObject) -> None:
    lines = GOOD.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "cut", "double", "replace"]))
        if change == "replace":
            lines[at] = data.draw(st.text(max_size=40)) + "\n"
        else:
            cut = data.draw(st.integers(0, len(lines[at])))
            lines[at] = {"drop": "", "cut": lines[at][:cut], "double": 2 * lines[at]}[change]
    try:
        found = android.parse("".join(lines))
    except DataError as error:
        assert len(str(error)) < 500
        return
    for row in android.table(found, {}):
        assert row["p50_ms"] > 0 and row["calls"] > 0


FIGURES = ("P50 Latency: 0.0005", "requests: 1000", "per second: 1877.5", "median=1850.0", "avg=1860.2", "Init: 4108")


@given(st.sampled_from(FIGURES), st.floats(0, exclude_min=True))
@example("P50 Latency: 0.0005", 1e306)
@example("avg=1860.2", 1e-310)
@example("requests: 1000", 0.5)
def test_a_figure_is_refused_or_all_that_is_computed_of_it_can_be_written(figure: str, value: float) -> None:
    name, sign, _ = re.split(r"([:=])", figure)
    try:
        found = android.table(android.parse(GOOD.replace(figure, f"{name}{sign}{' ' * (sign == ':')}{value!r}")), {})
    except DataError as error:
        assert f"says {repr(value)!r} for" in str(error)
        return
    for row in found:
        json.dumps(row, allow_nan=False)
        json.dumps([row["p50_ms"] / other["p50_ms"] for other in found], allow_nan=False)
        assert row["calls"] > 0


@given(st.text(max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"README\.md"):
        android.parse(text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("P50 Latency: 0.0005 s", "P50 Latency: nan s"), r"line 6 says 'nan' for 'P50 Latency'"),
        (("P50 Latency: 0.0005 s", "P50 Latency: -1 s"), r"says '-1' for 'P50 Latency'"),
        (("Total inference requests: 1000\n", ""), r"says nothing for 'Total inference requests'"),
        ((" median=1850.0", ""), r"says nothing for 'median', .* old one"),
        (("runtime=litert", "runtime=coreml"), r"line \d+: 'round runtime=coreml"),
        (("workload=fixed64", "workload=real"), r"workload=fixedN"),
        (("edgekd model=", "model="), r"begins without a line 'edgekd model="),
        (("device Pixel 8\n", "device Pixel 8\ndevice Pixel 9\n"), r"has 2 lines 'device"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(change: tuple[str, str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        android.parse(GOOD.replace(*change))


# ---------------------------------------------------------------------------------------------------------- end to end

ADB = """#!/usr/bin/env python3
import sys, pathlib
here = pathlib.Path({here!r})
with (here / "adb.log").open("a") as log:
    print(*sys.argv[1:], file=log)
if sys.argv[1] == "push":
    assert pathlib.Path(sys.argv[2]).exists(), sys.argv
said = " ".join(sys.argv[2:])
for word, name in (("ro.product.model", "Pixel 8"), ("version.release", "15"), ("cpu.abi", "arm64-v8a")):
    if word in said:
        print(name)
if "Features" in said:
    print("Features\\t: fp asimd asimddp")
if "onnxruntime_perf_test" in said and "cd " in said:
    print((here / "ort.txt").read_text())
"""


def arm(tmp_path: Path) -> tuple[Path, Path]:
    return device_fixture.runs(tmp_path, isa="aarch64", features=["asimddp"], missing=["aarch64"])


def test_the_commands_of_an_arm_bundles_card_run_and_their_text_becomes_rows_of_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, runs = arm(tmp_path)
    script = re.search(r"```sh\n(.*?)```", (bundle / "README.md").read_text(), re.DOTALL)
    assert script is not None
    (tmp_path / "ort.txt").write_text(ort(0.002))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "adb").write_text(ADB.format(here=str(tmp_path)))
    (tmp_path / "bin" / "adb").chmod(0o755)
    (bundle.parent / "onnxruntime_perf_test").touch()
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-eu", "-c", script[1]], cwd=bundle, env=env, check=True, capture_output=True)
    asked = (tmp_path / "adb.log").read_text()
    assert asked.count("./onnxruntime_perf_test -e cpu -m times") == android.ROUNDS
    ship.verify_files(bundle)  # the bundle is as before

    phone = bundle.parent / "phone.txt"
    assert main(["report", str(bundle), "--import", str(phone), "--store", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert "onnxruntime on Pixel 8, 1 thread, 8 tokens" in printed and "host-proxy" in printed
    report = schema.load(runs / "reuters_x86" / "report.json")
    (row,) = (row for row in report["rows"] if row["host"] == "Pixel 8")
    assert (row["p50_ms"], row["valid"], row["measured_on"]) == (pytest.approx(2.0), True, "device")
    assert {one["measured_on"] for one in report["rows"] if one["host"] is None} == {"host-proxy"}
    assert any("On Pixel 8 the int8 student takes 2.00 ms" in line for line in report["headline"])
    assert schema.load(bundle / "report.json")["devices"] == []  # what was shipped stays as it is


def of(bundle: Path) -> str:
    """What a phone's tools would print of this bundle."""
    model = ship.verify_files(bundle)["files"][MODEL]["sha256"]
    export = schema.load(bundle / "report.json")["stages"]["export"]["key"]
    return GOOD.replace("model=" + "a" * 64, f"model={model}").replace("export=" + "0" * 16, f"export={export}")


def test_a_text_that_cannot_be_taken_in_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, runs = arm(tmp_path)
    good = of(bundle)
    texts = {
        "of another model": GOOD.encode(),
        "says nothing": good.replace("P90 Latency: 0.001 s\n", "").encode(),
        "says '1e306'": good.replace("P50 Latency: 0.0005 s", "P50 Latency: 1e306 s").encode(),
        "says '1e-310'": good.replace("avg=1860.2", "avg=1e-310").encode(),
        "cannot read": good.encode() + b"\xff\xfe",
    }
    for told, text in texts.items():
        (tmp_path / "phone.txt").write_bytes(text)
        assert main(["report", str(bundle), "--import", str(tmp_path / "phone.txt"), "--store", str(runs)]) == 5
        assert told in capsys.readouterr().err
        assert not (runs / "reuters_x86").exists()


def test_a_text_of_another_model_is_refused_although_it_names_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, runs = arm(tmp_path)
    phone, report = tmp_path / "phone.txt", runs / "reuters_x86" / "report.json"

    def take(text: str, what: str, *more: str) -> int:
        phone.write_text(text)
        return main(["report", what, "--import", str(phone), "--store", str(runs), *more])

    good = of(bundle)
    assert take(good, str(bundle)) == take(good, "reuters_x86", "--name", "Mine") == 0
    before = report.read_bytes()
    assert {row["host"] for row in schema.load(report)["rows"]} == {None, "Pixel 8", "Mine"}
    another = re.sub("model=[0-9a-f]{64}", "model=" + "b" * 64, good)
    for what in (str(bundle), "reuters_x86"):
        assert take(another, what) == 5
        assert "of another model" in capsys.readouterr().err
    assert report.read_bytes() == before and len(list(runs.glob("*/devices/*/device.json"))) == 2

    shutil.rmtree(runs / "store")
    assert take(good, "reuters_x86") == 5 and "give the bundle's folder" in capsys.readouterr().err
    assert take(good, str(bundle)) == 0


def test_a_name_for_a_device_that_is_not_imported_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, runs = arm(tmp_path)
    assert main(["report", str(bundle), "--name", "Pixel 8", "--store", str(runs)]) == UsageError.exit_code
    assert "--import" in capsys.readouterr().err


@given(st.integers(8, 600))
def test_the_commands_name_a_signature_that_the_converter_is_asked_for(max_length: int) -> None:
    target = made.target()
    target = replace(target, task=replace(target.task, max_length=max_length))
    report = {"task": {"max_length": max_length}, "stages": {"export": {"key": "0" * 16}}, "run": "it"}
    manifest = {"model": "m.onnx", "runtimes": {"litert": "litert/model.tflite"}, "inputs": [{}, {}]}
    text = android.commands(report, manifest, "a" * 64)
    (length,) = (int(found) for found in re.findall(r"--signature_to_run_for=tokens_(\d+) ", text))
    assert length in graph.lengths(target)
    assert f"--input_layer_shape=1,{length}:1,{length} " in text
    timed = {name: int(count) for name, count in re.findall(r"runtime=(\w+) threads=1 workload=fixed(\d+)", text)}
    assert timed["litert"] == length and timed["ort_cpu"] == android.tokens(report) <= max_length


def test_the_test_data_of_a_bundle_are_the_first_tokens_as_the_graph_takes_them(tmp_path: Path) -> None:
    bundle, _ = arm(tmp_path)
    given = {}
    for path in sorted((bundle / android.TEST_DATA).iterdir()):
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        given[tensor.name] = numpy_helper.to_array(tensor)
    assert list(given) == ["input_ids", "attention_mask"]
    length = tiny_bundle.MAX_LENGTH
    assert given["input_ids"].tolist() == [device_fixture.inputs()["ids"][:length].tolist()]
    assert given["attention_mask"].tolist() == [[1] * length]


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        (spec.ANDROID_ARM64, True),
        (spec.ARM64_DOTPROD, True),
        (spec.Device(name="a board of mine", isa="aarch64"), True),
        (spec.RASPBERRY_PI_5, False),
        (spec.RASPBERRY_PI_4, False),
        (spec.IOS_ARM64, False),
        (spec.X86_VNNI, False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_bundle_says_how_to_measure_on_android_where_its_device_may_run_that(
    profile: spec.Device, told: bool, tmp_path: Path
) -> None:
    bundle, _ = device_fixture.runs(tmp_path, **made.report(device=profile)["device"])
    assert ("adb" in (bundle / "README.md").read_text(), (bundle / "android").exists()) == (told, told)
