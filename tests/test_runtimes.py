"""Every runtime in the table keeps the same promises; a new line in the table is held to them too."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from bag_of_words import CLASSES, VOCABULARY, bag_of_words
from onnx.reference import ReferenceEvaluator

from edgekd import machine, runtimes, spec
from edgekd.errors import BenchError, MissingDependencyError
from edgekd.runtimes import converting


def need(name: str) -> runtimes.Runtime:
    if (command := runtimes.availability(name)) is not None:
        pytest.skip(f"not installed: {command}")
    return runtimes.get(name)


ROUNDING = {"openvino_bf16": 2e-2}
"""How far logits may lie from the reference's, where not by the rounding of float32."""


def one_thread_alone(name: str, threads: int) -> None:
    if runtimes.entry(name).programs and threads > 1:
        pytest.skip("a page has one thread; more are refused (tests/test_web.py)")


every_runtime = pytest.mark.parametrize("name", runtimes.RUNTIMES)


def made(name: str, model: Path, lengths: tuple[int, ...] = (16, 64)) -> Path:
    """The file that a runtime reads, from an ``.onnx``."""
    if not runtimes.entry(name).converters:
        return model
    if runtimes.converters(name) is None:
        pytest.skip(f"not installed: {runtimes.entry(name).extra}")
    for file, content in converted(name, model.read_bytes(), lengths).items():
        (model.parent / file).write_bytes(content)
    return model.parent / runtimes.entry(name).file


@functools.cache
def converted(name: str, content: bytes, lengths: tuple[int, ...]) -> dict[str, bytes]:
    """A conversion takes seconds, and many tests ask for the same."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.onnx")
        model.write_bytes(content)
        file = model.parent / "made" / runtimes.entry(name).file
        file.parent.mkdir()
        assert "error" not in (found := converting.convert(name, model, file, lengths)), found
        return {made.name: made.read_bytes() for made in file.parent.iterdir()}


def test_the_table_and_the_targets_know_the_same_runtimes():
    assert tuple(runtimes.RUNTIMES) == spec.RUNTIMES


@every_runtime
@pytest.mark.parametrize("threads", [1, 2])
def test_the_logits_are_those_of_the_onnx_reference(name, threads, tmp_path):
    runtime = need(name)
    one_thread_alone(name, threads)
    model = bag_of_words(tmp_path / "model.onnx")
    session = runtime.load(made(name, tmp_path / "model.onnx"), threads)
    assert set(session.inputs) == {"input_ids", "attention_mask"}
    rng = np.random.default_rng(1)
    earlier = []
    for tokens in (1, 7, 64, 7):
        feeds = {
            "input_ids": rng.integers(0, VOCABULARY, (1, tokens)),
            "attention_mask": (np.arange(tokens) < max(1, tokens - 2)).astype(np.int64)[None],
        }
        logits = session.run(feeds)
        (expected,) = ReferenceEvaluator(model).run(["logits"], feeds)
        assert logits.shape == (1, CLASSES) and logits.dtype == np.float32
        close = ROUNDING.get(name, 1e-4)
        np.testing.assert_allclose(logits, expected, rtol=close, atol=close / 10)
        earlier.append((logits, expected))
    for logits, expected in earlier:  # a later call does not write into what an earlier one returned
        np.testing.assert_allclose(logits, expected, rtol=close, atol=close / 10)


COUNT = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from edgekd import runtimes
runtime = runtimes.get(sys.argv[1])
process = getattr(runtime, "process", os.getpid)()
session = runtime.load(Path(sys.argv[2]), int(sys.argv[3]))
feeds = {"input_ids": np.ones((1, 512), np.int64), "attention_mask": np.ones((1, 512), np.int64)}
session.run(feeds)
def ran():
    tasks = Path(f"/proc/{process}/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}
before, end = ran(), time.perf_counter() + 0.6
while time.perf_counter() < end:
    session.run(feeds)
after = ran()
spent = [after[task] - before.get(task, 0) for task in after]
print(json.dumps(sum(ran > max(spent) / 20 for ran in spent)))
"""


@every_runtime
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count time per thread")
def test_exactly_the_asked_threads_do_work(name, threads, tmp_path):
    need(name)
    one_thread_alone(name, threads)
    if name == "ort_web_chromium":
        pytest.skip("a browser compiles and talks in threads of its own, beside the page's one")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    bag_of_words(tmp_path / "model.onnx", sizes=(512, 512, 512, 512))
    file = made(name, tmp_path / "model.onnx", (512,))
    command = [sys.executable, "-c", COUNT, name, str(file), str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert json.loads(done.stdout.splitlines()[-1]) == threads  # behind what a library may say


@every_runtime
def test_a_version_is_that_of_the_package(name):
    package = runtimes.entry(name).package
    assert need(name).version().startswith(runtimes.installed()[package].split("+")[0])


@every_runtime
def test_a_file_that_is_no_model_is_an_error_and_not_a_crash(name, tmp_path):
    runtime = need(name)
    file = tmp_path / runtimes.entry(name).file
    file.write_bytes(b"\x08\x07garbage")
    with pytest.raises(Exception):  # noqa: B017 (each library has its own)
        runtime.load(file, 1)


@every_runtime
def test_a_runtime_imports_torch_only_where_the_table_says_so(name):
    need(name)
    code = f"import sys; from edgekd import runtimes; runtimes.get({name!r}); raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == runtimes.entry(name).torch


def test_looking_at_the_table_imports_no_runtime():
    code = (
        "import sys; from edgekd import runtimes; [runtimes.availability(name) for name in runtimes.RUNTIMES]; "
        "runtimes.installed(); raise SystemExit(bool({'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


AUDIT = """
import sys, tempfile, os
told = []
def hook(event, args):
    if event.startswith(("socket.", "urllib.", "http.", "subprocess.", "os.fork", "os.system", "os.posix_spawn")):
        told.append((event, args[:1]))
    if event == "open" and isinstance(args[0], str) and args[0].startswith(os.environ["HOME"]):
        told.append((event, args[0]))
sys.addaudithook(hook)
import threading
from pathlib import Path
from edgekd import runtimes
runtime = runtimes.get(sys.argv[1])
runtime.load(Path(sys.argv[2]), 1)
real = [name for name in sys.modules if name.startswith("openvino_telemetry") and sys.modules[name] is not None]
print(told, real, [t.name for t in threading.enumerate() if t is not threading.main_thread()])
"""


@pytest.mark.parametrize("name", [name for name, entry in runtimes.RUNTIMES.items() if not entry.programs])
def test_loading_a_model_sends_nothing_and_leaves_nothing_in_the_home_folder(name, tmp_path):
    need(name)
    bag_of_words(tmp_path / "model.onnx")
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    command = [sys.executable, "-c", AUDIT, name, str(made(name, tmp_path / "model.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**environment, "HOME": str(home)})
    assert done.stdout.splitlines()[-1] == "[] [] []"
    assert list(home.iterdir()) == []


def test_openvino_computes_in_float32_even_where_the_cpu_has_bfloat16(tmp_path):
    runtime = need("openvino")
    bag_of_words(tmp_path / "model.onnx")
    compiled = runtime.load(tmp_path / "model.onnx", 1)._request.get_compiled_model()
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_bfloat16_is_a_runtime_of_its_own_and_for_cpus_that_have_it(tmp_path, monkeypatch):
    need("openvino")
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2"}))
    assert runtimes.availability("openvino_bf16") == "needs a CPU with avx512_bf16 or amx_bf16"
    with pytest.raises(MissingDependencyError, match="openvino_bf16 cannot be used here: needs a CPU with"):
        runtimes.get("openvino_bf16")
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2", "amx_bf16"}))
    bag_of_words(tmp_path / "model.onnx")
    compiled = runtimes.get("openvino_bf16").load(tmp_path / "model.onnx", 1)._request.get_compiled_model()
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'bfloat16'>"


def test_onnxruntime_runs_on_the_cpu_provider_alone(tmp_path):
    runtime = need("ort_cpu")
    bag_of_words(tmp_path / "model.onnx")
    session = runtime.load(tmp_path / "model.onnx", 2)._run.__self__
    assert session.get_providers() == ["CPUExecutionProvider"]
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_a_runtime_that_is_not_installed_names_the_command_that_installs_it(monkeypatch):
    missing = dataclasses.replace(runtimes.RUNTIMES["openvino"], package="no_such_package_here")
    monkeypatch.setitem(runtimes.RUNTIMES, "openvino", missing)
    assert runtimes.availability("openvino") == missing.install
    assert "no_such_package_here" not in runtimes.installed()
    with pytest.raises(MissingDependencyError, match="edgekd\\[openvino\\]"):
        runtimes.get("openvino")


@pytest.mark.parametrize("name", ["tensorrt", "", "/no/such/file.py:known"])
def test_an_unknown_runtime_is_an_error(name):
    with pytest.raises(BenchError):
        runtimes.get(name)


def test_a_runtime_can_be_brought_along_in_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("class mine:\n    version = staticmethod(lambda: 'my own')\n")
    assert runtimes.get(f"{tmp_path}/mine.py:mine").version() == "my own"
    assert runtimes.availability(f"{tmp_path}/mine.py:mine") is None


def test_every_module_of_the_table_exists():
    assert all(importlib.util.find_spec(entry.module) for entry in runtimes.RUNTIMES.values())
