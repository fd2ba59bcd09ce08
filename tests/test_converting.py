"""Claims about conversions: what is shipped is what is converted, and what goes wrong is a reason and not the end."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from bag_of_words import bag_of_words
from tiny_onnx import KEEP, exported, feed

from edgekd import runtimes
from edgekd.bench.measure import Artifact, measure
from edgekd.onnxio import audit, bridge, files, requantize
from edgekd.progress import Progress
from edgekd.quant.grids import Grid
from edgekd.runtimes import converting
from edgekd.runtimes.ort_mobile import CONFIG
from edgekd.stages import bench, convert
from edgekd.store import MANIFEST, Context, Stage, read_json, write_json

QUIET = Progress(quiet=True)

BAD = """
import os, socket, sys
def convert(source, out, lengths):
    what = source.read_bytes()[:5].decode(errors="replace")
    if what == "crash":
        os.abort()
    if what == "error":
        raise ValueError("no such operator")
    if what == "calls":
        socket.create_connection(("127.0.0.1", int(source.read_bytes().split()[1])), timeout=2).close()
    if what == "write":
        source.write_bytes(b"spoilt")
    out.write_text(f"{lengths}")
    return {"said": what}
"""


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A runtime with a converter that misbehaves as the first word of its input says."""
    (tmp_path / "strange.py").write_text(BAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    name = f"{tmp_path}/strange.py:"
    entry = runtimes.Entry(name, "", "", "model.strange", ("numpy",), "pip install strange")
    monkeypatch.setattr(runtimes, "entry", lambda asked: entry if asked == name else runtimes.RUNTIMES[asked])
    return name


def source(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_text(content)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("student"))


def test_the_mobile_file_answers_to_the_bit_as_the_shipped_one_and_names_its_operators(
    student: Path, tmp_path: Path
) -> None:
    ran = converting.convert("ort_mobile", student, tmp_path / "model.ort", (16,))
    audited = audit.audit(student, KEEP)["multiplications"]
    assert sorted(ran["int8"]) == sorted(row["node"] for row in audited if row["int8"])
    assert len(ran["float"]) == sum(not row["int8"] for row in audited)
    for batch, length in ((1, 7), (3, 20)):
        feeds = feed(batch, length, 3)
        one, other = (
            onnxruntime.InferenceSession(str(p)).run(None, feeds)[0] for p in (student, tmp_path / "model.ort")
        )
        assert np.array_equal(one, other)
    named = (tmp_path / CONFIG).read_text()
    assert "QGemm" in named and "LayerNormalization" in named
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ort", CONFIG]


def test_litert_has_the_very_integers_of_the_shipped_file_and_its_labels(student: Path, tmp_path: Path) -> None:
    if runtimes.converters("litert") is None:
        pytest.skip(f"not installed: {runtimes.entry('litert').extra}")
    found = converting.convert("litert", student, tmp_path / "model.tflite", (16, 32))
    assert "error" not in found, found
    stored = {weight.name for weight in bridge.stored(files.read(student)).values()}
    positions = (
        "bert.embeddings.position_embeddings.weight"  # of each length the converter keeps its first rows, as floats
    )
    assert set(found["int8"]) == stored - {positions} and found["float"] == [positions, "classifier.weight"]
    session = runtimes.get("litert").load(tmp_path / "model.tflite", 1)
    exact = onnxruntime.InferenceSession(str(student))
    asked = [feed(1, 3 + seed % 30, seed) for seed in range(40)]
    one, other = (
        np.concatenate([run(feeds) for feeds in asked]) for run in (lambda x: exact.run(None, x)[0], session.run)
    )
    apart = np.linalg.norm(one - other, axis=1) / np.linalg.norm(one, axis=1)
    assert np.median(apart) < 1e-3  # ties may round otherwise: onnxruntime's own optimizations change as much
    assert (one.argmax(1) == other.argmax(1)).mean() >= 0.975


@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_products_of_activations_that_would_be_float_are_refused_by_name(
    runtime: str, student: Path, tmp_path: Path
) -> None:
    if runtimes.converters(runtime) is None:
        pytest.skip(f"not installed: {runtimes.entry(runtime).extra}")
    made = files.read(student)
    places = requantize.attention(made)
    grid = Grid(np.array(0.05, np.float32), np.array(128, np.uint8))
    files.write(requantize.put(made, places, {tensor: grid for tensor, _ in places}), tmp_path / "model.onnx")
    found = converting.convert(runtime, tmp_path / "model.onnx", tmp_path / runtimes.entry(runtime).file, (16,))
    assert re.search(r"attention.*MatMul.*\(4 in all\) is int8 in the graph and would be float", found["error"])


def test_openvino_tells_which_multiplications_it_does_in_int8(student: Path) -> None:
    if (command := runtimes.availability("openvino")) is not None:
        pytest.skip(f"not installed: {command}")
    session: Any = runtimes.get("openvino").load(student, 1)
    told = session.executed()
    audited = audit.audit(student, KEEP)["multiplications"]
    assert set(told["int8"]) == {row["node"] for row in audited if row["int8"]}
    assert told["float"] and not any("query" in name or "dense" in name for name in told["float"])


@pytest.mark.parametrize(
    ("content", "why"), [("crash", "crashed with SIGABRT"), ("error", "ValueError: no such operator")]
)
def test_a_conversion_that_fails_is_a_reason_and_leaves_nothing(
    content: str, why: str, strange: str, tmp_path: Path
) -> None:
    found = converting.convert(strange, source(tmp_path / "in", content), tmp_path / "model.strange", (16,))
    assert why in found["error"] and not (tmp_path / "model.strange").exists()


def test_a_converter_gets_a_copy(strange: str, tmp_path: Path) -> None:
    given = source(tmp_path / "in", "write")
    assert converting.convert(strange, given, tmp_path / "model.strange", (16, 32)) == {"said": "write"}
    assert given.read_text() == "write" and (tmp_path / "model.strange").read_text() == "(16, 32)"


@pytest.mark.skipif(not converting._offline(), reason="this system lets nobody leave the network")
def test_a_converter_reaches_nobody(strange: str, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        given = source(tmp_path / "in", f"calls {server.getsockname()[1]}")
        assert "error" in converting.convert(strange, given, tmp_path / "model.strange", (16,))


def test_the_stage_converts_what_was_exported_goes_on_where_it_was_killed_and_its_reasons_become_rows(
    strange: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("teacher_fp32", "fine"), ("student_fp32", "crash"), ("student_qad", "fine")):
        source(tmp_path / "export" / name, content)
    out = tmp_path / "convert"
    (out / "teacher_fp32").mkdir(parents=True)
    write_json(out / "teacher_fp32" / bench.CONVERSION, {"said": "before the kill"})
    done: dict[str, Any] = dict(
        runtime=strange, versions={}, lengths=(16,), export=Stage("export", "0", tmp_path / "export")
    )
    convert.run(Context(out, "cpu", 1, QUIET), **done)
    said = {name: read_json(out / name / bench.CONVERSION) for name in os.listdir(out)}
    assert said["teacher_fp32"] == {"said": "before the kill"} and said["student_qad"] == {"said": "fine"}
    write_json(out / MANIFEST, {"inputs": {"runtime": strange}})
    found = {
        a.name: a for a in bench.artifacts(tmp_path / "export", {}, {bench._runtime(Stage("convert", "0", out)): out})
    }
    assert found["student_qad"].file(strange) == out / "student_qad" / "model.strange"
    assert found["student_qad"].file("ort_cpu") == tmp_path / "export" / "student_qad" / "model.onnx"
    assert found["student_fp32"].lacking[strange].startswith("not converted: crashed with SIGABRT")


def test_what_was_not_converted_is_a_row_with_the_reason(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, ids=np.ones(4, np.int64), offsets=np.array([0, 2, 4]), labels=np.zeros(2, np.int64))
    (tmp_path / "a").mkdir()
    bag_of_words(tmp_path / "a" / "model.onnx")
    whys = {}
    for name, lacking in (("mended", {"ort_mobile": "not converted: it crashed"}), ("never", {})):
        (row,) = measure(
            [Artifact(name, (tmp_path / "a",), inputs, {}, lacking)], runtimes=("ort_mobile",), threads=(1,),
            workloads={}, rounds=1, calls=2, out=tmp_path / name, progress=QUIET, score=lambda *_: 0.0,
        )  # fmt: skip
        whys[name] = row["why_invalid"]
    assert whys == {"mended": "not converted: it crashed", "never": "there is no model.ort of never"}
