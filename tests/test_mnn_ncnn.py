"""Claims about MNN and ncnn: float32 of what the shipped integers stand for, at every length."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_text_students as others
from tiny_onnx import exported, feed

from edgekd import runtimes
from edgekd.bench.measure import Artifact
from edgekd.errors import BenchError
from edgekd.onnxio import bridge, export, files, passes
from edgekd.onnxio.audit import session
from edgekd.runtimes import converting

LENGTHS = (1, 7, 30, 7)


def made(runtime: str, student: Path, folder: Path) -> tuple[dict[str, Any], Artifact]:
    if runtimes.availability(runtime) or runtimes.converters(runtime) is None:
        pytest.skip(f"not installed: {runtimes.entry(runtime).extra}")
    found = converting.convert(runtime, student, folder / runtimes.entry(runtime).file, (16, 32))
    return found, Artifact("student", (folder,), folder / "inputs.npz")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize("runtime", ["mnn", "ncnn"])
def test_logits_are_those_of_the_folded_graph_at_every_length(runtime: str, student: Path, tmp_path: Path) -> None:
    found, artifact = made(runtime, student, tmp_path)
    model = files.read(student)
    layers = {weight.name for weight in bridge.stored(model).values() if not weight.table}
    assert found["int8"] == [] and set(found["float"]) == layers | {"classifier.weight"}
    assert 0 < found["difference"] < 0.1  # what the integers of the activations change
    path = artifact.file(runtime)
    assert path is not None
    loaded, folded = runtimes.get(runtime).load(path, 1), session(passes.apply(model, passes.FOLDED), optimize=False)
    for seed, length in enumerate(LENGTHS):
        feeds = feed(1, length, seed)
        (expected,) = folded.run(None, feeds)
        np.testing.assert_allclose(loaded.run(feeds), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    sizes = {file.name: file.stat().st_size for file in artifact.files(runtime)}
    assert artifact.size_bytes(runtime) == sum(sizes.values())
    assert set(sizes) == {runtimes.entry(runtime).file, *filter(None, [runtimes.entry(runtime).weights])}
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(sizes)  # and nothing else is left there


def test_ncnn_refuses_a_batch_rather_than_answer_for_its_first_example(student: Path, tmp_path: Path) -> None:
    path = made("ncnn", student, tmp_path)[1].file("ncnn")
    assert path is not None
    with pytest.raises(BenchError, match="one example at a time, and these are 3"):
        runtimes.get("ncnn").load(path, 1).run(feed(3, 7))


def test_mnn_stores_the_very_integers_and_what_it_would_round_anew_as_floats(student: Path, tmp_path: Path) -> None:
    found, artifact = made("mnn", student, tmp_path)
    weights = [weight for weight in bridge.stored(files.read(student)).values() if not weight.table]
    assert found["int8_weights"] == len({weight.name for weight in weights})
    dumped = tmp_path / "dumped.json"
    convert = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
    options = ("-f", "MNN", "--modelFile", str(artifact.file("mnn")), "--JsonFile", str(dumped))
    subprocess.run([sys.executable, "-c", convert, *options], check=True, capture_output=True)
    layers = [op["main"] for op in json.loads(dumped.read_text())["oplists"] if op["type"] == "Convolution"]
    kinds = {op["common"]["outputCount"]: "quanParameter" in op for op in layers}
    classes = session(files.read(student)).get_outputs()[0].shape[1]
    assert sum("quanParameter" in op for op in layers) == found["int8_weights"] and kinds[classes] is False


@pytest.mark.parametrize(
    ("runtime", "kind", "refused"),
    [
        ("mnn", "cnn", ""),
        ("mnn", "lstm", ""),
        ("ncnn", "cnn", "ncnn cannot read"),
        ("ncnn", "lstm", "no torch counterpart of the operators LSTM"),
        ("litert", "cnn", r"convolutions.0.weight \(3 in all\) is int8 in the graph and would be float in LiteRT"),
    ],
)
def test_students_without_attention_are_the_same_function_or_refused(
    runtime: str, kind: str, refused: str, tmp_path: Path
) -> None:
    options, keep = others.KINDS[kind]
    path = tmp_path / "student" / "model.onnx"
    path.parent.mkdir()
    model = others.quantized(others.classifier(options), keep_float=keep)
    export.export_quantized(model, path, opset=17, keep_float=keep)
    found, _ = made(runtime, path, tmp_path)
    if refused:
        assert re.search(refused, found["error"])
    else:
        assert found["int8_weights"] > 0 and found["difference"] < 0.05
