"""Claims about the whole line on a tiny real target: it ships what it measured, and the same bytes whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_target

from edgekd import catalog, machine, pipeline
from edgekd.report import schema
from edgekd.stages import quantize
from edgekd.store import Context
from edgekd.tuning import result

ROWS = ("teacher_fp32", "teacher_ort_dynamic", "student_fp32", "student_ptq", "student_qad")


def edgekd(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def exported(line: Path, cwd: Path) -> str:
    """The student that the export stage of ``line`` left, in the store under ``cwd``."""
    stages = json.loads((line / "runs/tiny_line/stages.json").read_text())
    model = cwd / "runs/store" / stages["export"] / "student_qad/model.onnx"
    return hashlib.sha256(model.read_bytes()).hexdigest()


def artifact(cwd: Path) -> str:
    return hashlib.sha256((cwd / "dist/tiny_line/onnx/model_quantized.onnx").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("line")
    edgekd("run", str(tiny_target.write(folder, epochs=12)), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def report(line: Path) -> Any:
    return json.loads((line / "runs/tiny_line/report.json").read_text())


def test_the_report_is_valid_and_holds_every_contender(report: Any) -> None:
    schema.validate(report)
    assert {row["artifact"] for row in report["rows"]} == set(ROWS)
    for row in report["rows"]:
        assert row["p50_ms"] > 0 and row["size_bytes"] > 0 and 0 <= row["score"] <= 1
        assert row["valid"] == (row["why_invalid"] is None)
    assert len(report["latency"]) == len(report["rows"])  # the raw samples were found again,
    assert report["verdicts"]["quality"]["examples"] == report["task"]["counts"]["test"]  # and the answers


def test_the_teacher_learned_and_the_student_follows_it(report: Any) -> None:
    rows = {row["artifact"]: row for row in report["rows"]}
    assert rows["teacher_fp32"]["score"] == pytest.approx(report["teacher"]["scores"]["test"]["score"], abs=0.02)
    assert rows["teacher_fp32"]["score"] > 0.6
    assert rows["teacher_fp32"]["agreement"] == 1.0 and rows["teacher_fp32"]["kl"] == pytest.approx(0, abs=1e-9)
    assert rows["student_qad"]["agreement"] > 0.5


def test_every_float_tensor_left_in_the_shipped_file_is_small(line: Path) -> None:
    import onnx

    model = onnx.load(line / "dist/tiny_line/onnx/model_quantized.onnx")
    assert not {i.name for i in model.graph.initializer} & {i.name for i in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            assert np.prod(tensor.dims) * 4 <= 64 * 1024, tensor.name


def test_the_bundle_is_what_was_measured_and_verifies(line: Path, report: Any) -> None:
    stages = json.loads((line / "runs/tiny_line/stages.json").read_text())
    exported = line / "runs/store" / stages["export"] / "student_qad/model.onnx"
    assert hashlib.sha256(exported.read_bytes()).hexdigest() == artifact(line)
    row = next(r for r in report["rows"] if r["artifact"] == "student_qad")
    assert row["size_bytes"] == (line / "dist/tiny_line/onnx/model_quantized.onnx").stat().st_size
    assert edgekd("verify", "dist/tiny_line", cwd=line).returncode == 0
    said = json.loads(edgekd("predict", "dist/tiny_line", "oil price crude barrel", "--json", cwd=line).stdout)
    assert "energy" in json.dumps(said)


def test_the_run_is_diagnosed_layer_by_layer_with_a_line_to_paste(line: Path) -> None:
    said = edgekd("diagnose", "tiny_line", "--examples", "8", cwd=line).stdout
    found = json.loads((line / "runs/tiny_line/diagnose.json").read_text())
    assert (found["kind"], found["examples"]) == ("qad", 8) and found["kl"] > 0
    assert len(found["layers"]) == 2 * 6 + 1 + 3  # the classifier is kept in float
    for row in found["layers"]:
        assert f"{row['layer']} " in said
    assert found["keep_float"] and said.rstrip().endswith(found["line"])
    assert found["ms_from"].startswith("predicted, from the run's own bench (onnxruntime")
    given: dict[str, Any] = {}
    exec(found["line"], given)
    assert given["keep_float"][2:] == tuple(row["layer"] for row in found["keep_float"])


def test_optimum_loads_the_bundle(line: Path) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    folder = line / "dist/tiny_line"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ORTModelForSequenceClassification.from_pretrained(folder)
    from edgekd import deploy

    text = "wheat corn grain port"
    theirs = model(**tokenizer(text, return_tensors="np", truncation=True)).logits
    np.testing.assert_allclose(theirs, deploy.load(folder).logits([text]), rtol=1e-5, atol=1e-6)


def test_a_second_run_reuses_everything(line: Path) -> None:
    said = edgekd("run", str(line / "tiny_line.py"), cwd=line).stderr
    assert said.count("reused") >= 7 and "running" not in said


def test_a_budget_that_fails_is_said_first_and_has_its_exit_code(line: Path) -> None:
    assert edgekd("report", "tiny_line", "--check", cwd=line).returncode == 0
    hopeless = line / "hopeless.py"  # every stage is the finished run's: a budget is nothing that a stage depends on
    text = (line / "tiny_line.py").read_text()
    hopeless.write_text(text.replace('name="tiny_line"', 'name="hopeless"').replace("size_mib=1.0", "size_mib=0.04"))
    edgekd("run", str(hopeless), "--to", "verdict", cwd=line)
    said = edgekd("report", "hopeless", "--check", cwd=line, check=False)
    assert said.returncode == 9
    assert "budget" in said.stdout[:400].lower() and "fail" in said.stdout[:400].lower()


@pytest.mark.parametrize(
    ("graph", "step", "operator"),
    [
        ("requantized", "outputs", "QGemm"),
        ("sequence", None, "MatMulIntegerToFloat"),
        ("skip_layer_norm", "SkipLayerNormalization", "SkipLayerNormalization"),
    ],
)
def test_a_target_may_ask_for_the_graph_that_tuning_found_faster(
    line: Path, graph: str, step: str | None, operator: str
) -> None:
    text = (line / "tiny_line.py").read_text().replace('name="tiny_line"', f'name="{graph}_line"')
    (line / f"{graph}_line.py").write_text(text.replace("export=Export(", f'export=Export(graph="{graph}", '))
    edgekd("run", f"{graph}_line.py", "--to", "export", cwd=line)
    stages = json.loads((line / f"runs/{graph}_line/stages.json").read_text())
    export = line / "runs/store" / stages["export"]
    assert json.loads((export / "audit.json").read_text())["student_qad"]["operators"][operator] > 0
    parity = json.loads((export / "parity.json").read_text())["student_qad"]
    assert {"attention", "outputs", "SkipLayerNormalization"} & parity.keys() == ({step} if step else set())
    assert step is None or parity[step]["agreement"] >= 0.9


def test_the_same_student_in_four_bits_is_shipped_without_calibration(line: Path) -> None:
    text = (line / "tiny_line.py").read_text().replace('name="tiny_line"', 'name="four_bits"')
    (line / "four_bits.py").write_text(text.replace('calibration="tiny"', 'scheme="w4_block", block=32'))
    edgekd("run", str(line / "four_bits.py"), cwd=line)
    stages = json.loads((line / "runs/four_bits/stages.json").read_text())
    found = json.loads((line / "runs/store" / stages["export"] / "audit.json").read_text())["student_qad"]
    assert found["4-bit weights"] == 2 * 6 + 1 and found["int8"] == 0  # the classifier is kept in float
    assert "calibrated on" not in (line / "runs/four_bits/report.md").read_text()
    manifest = json.loads((line / "dist/four_bits/manifest.json").read_text())
    assert manifest["scheme"] == "w4_block" and manifest["minimum_onnxruntime"] == "1.22"
    assert edgekd("verify", "dist/four_bits", cwd=line).returncode == 0


def test_a_finished_run_is_tuned_without_training_and_goes_on_where_it_stopped(line: Path) -> None:
    tune = ("tune", str(line / "tiny_line.py"), *("--only", "attention_int8", "--only", "no_arena"))
    said = edgekd(*tune, "--rounds", "1", "--calls", "5", "--json", cwd=line)
    found = json.loads(said.stdout)
    assert found == json.loads((line / "runs/tiny_line/tune.json").read_text())
    missing = machine.missing_features(catalog.load(line / "tiny_line.py").device)
    assert (found["missing"], found["measured_on"]) == (missing, "host-proxy" if missing else "device")
    assert [row["name"] for row in found["placements"]] == ["own", "attention_int8"]
    assert [row["name"] for row in found["session"]] == ["default", "no_arena"]
    assert all(row["p50_ms"] > 0 and row["verdict"] == "INVALID" for row in found["placements"])  # one round
    assert found["chosen"]["name"] == "own" and not found["chosen"]["session"] and not found["confirmed"]
    candidates = {json.loads((f / "audit.json").read_text())["float"] for f in line.glob("runs/store/candidate-*")}
    assert candidates == {2 * 2 + 1, 1}  # attention's products and the classifier; the classifier alone
    times = [(path, path.stat().st_mtime_ns) for path in line.glob("runs/**/*.npz")]
    again = edgekd(*tune, "--rounds", "1", "--calls", "5", cwd=line)
    assert "session options: none" in again.stdout and "paste" not in again.stdout
    assert [(path, path.stat().st_mtime_ns) for path in line.glob("runs/**/*.npz")] == times


@pytest.mark.slow
def test_attention_in_int8_and_session_options_are_measured_shipped_and_deployed(line: Path) -> None:
    text = (line / "tiny_line.py").read_text().replace('name="tiny_line"', 'name="int8_attention"')
    (line / "int8_attention.py").write_text(text.replace('"*.attention.self.MatMul*", "classifier"', '"classifier",'))
    target = catalog.load(line / "int8_attention.py")
    options = {"enable_cpu_mem_arena": False, "session.disable_prepacking": "1"}
    chosen = {"name": "own", "placement": result.placement(target), "session": options, "lines": []}
    (line / "runs/int8_attention").mkdir()
    (line / "runs/int8_attention/tune.json").write_text(json.dumps({"schema": result.SCHEMA, "chosen": chosen}))
    said = edgekd("run", str(line / "int8_attention.py"), cwd=line).stderr
    assert "student_qad with the session options of `edgekd tune`: enable_cpu_mem_arena=false" in said
    stages = json.loads((line / "runs/int8_attention/stages.json").read_text())
    export = line / "runs/store" / stages["export"]
    assert json.loads((export / "audit.json").read_text())["student_qad"]["float"] == 1
    assert json.loads((export / "parity.json").read_text())["student_qad"]["attention"]["agreement"] >= 0.9
    assert json.loads((line / "runs/int8_attention/report.json").read_text())["session"] == options
    manifest = json.loads((line / "dist/int8_attention/manifest.json").read_text())
    assert options.items() <= manifest["session"].items()
    assert edgekd("verify", "dist/int8_attention", cwd=line).returncode == 0
    assert "chosen by `edgekd tune`" in edgekd("ship", "int8_attention", cwd=line).stderr


@pytest.mark.slow
def test_what_another_runtime_reads_is_made_of_what_ships_and_measured_beside_it(line: Path) -> None:
    text = (line / "tiny_line.py").read_text().replace('name="tiny_line"', 'name="two_runtimes"')
    both = 'bench=Bench(runtimes=("ort_cpu", "ort_mobile"), rounds=3, calls=20)'
    (line / "two_runtimes.py").write_text(text.replace("bench=Bench(rounds=3, calls=20)", both))
    plan = json.loads(edgekd("plan", str(line / "two_runtimes.py"), "--json", cwd=line).stdout)
    assert [stage["stage"] for stage in plan["stages"] if stage["action"] == "run"] == ["convert_ort_mobile", "bench"]
    edgekd("run", str(line / "two_runtimes.py"), cwd=line)
    report = json.loads((line / "runs/two_runtimes/report.json").read_text())
    schema.validate(report)
    scores = {(row["artifact"], row["runtime"]): (row["score"], row["agreement"]) for row in report["rows"]}
    assert len(scores) == 2 * len(ROWS)
    assert all(scores[name, "ort_cpu"] == scores[name, "ort_mobile"] for name in ROWS)
    assert "onnxruntime mobile (.ort), 1 thread, real lengths" in (line / "runs/two_runtimes/report.md").read_text()
    bundle = line / "dist/two_runtimes"
    assert json.loads((bundle / "manifest.json").read_text())["runtimes"] == {"ort_mobile": "ort_mobile/model.ort"}
    assert (bundle / "ort_mobile/required_operators_and_types.config").is_file()
    assert "`ort_mobile/model.ort`" in (bundle / "README.md").read_text()
    assert edgekd("verify", "dist/two_runtimes", cwd=line).returncode == 0
    (bundle / "ort_mobile/model.ort").write_bytes(b"another")
    assert edgekd("verify", "dist/two_runtimes", cwd=line, check=False).returncode == 11


@pytest.mark.parametrize("share", [0.01, 1.5])
def test_training_is_left_out_where_ptq_keeps_the_share_that_is_asked(line: Path, tmp_path: Path, share: float) -> None:
    target = line / "tiny_line.py"
    steps = pipeline.steps(catalog.load(str(target)), line / "runs", beside=target)
    step = next(step for step in steps if step.name == "quantize")
    for name in ("ptq.json", "ptq.safetensors"):  # it goes on from there, as after a kill
        shutil.copy(step.stage.path / name, tmp_path)
    progress = tiny.Bars()
    quantize.run(Context(tmp_path, "cpu", 1, progress), **(step.inputs | {"score_kept": share}))
    quant, scores = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("quant", "scores"))
    assert quant["trained"] == (scores["training"]["steps"] > 0) == (share > 1)
    assert ("not trained under quantization: PTQ was within the budget" in str(progress.said)) == (share < 1)
    same = (tmp_path / "ptq.safetensors").read_bytes() == (tmp_path / "qad.safetensors").read_bytes()
    assert same or share > 1


def test_ptq_is_the_try_that_came_closest_to_the_teacher_on_validation(line: Path) -> None:
    stages = json.loads((line / "runs/tiny_line/stages.json").read_text())
    folder = line / "runs/store" / stages["quantize"]
    tries, scores, quant = (json.loads((folder / f"{n}.json").read_text()) for n in ("ptq", "scores", "quant"))
    best = min(tries, key=lambda found: found["kl"])
    assert best["best"] and best["name"] == quant["ptq"] and best["kl"] == scores["ptq"]["kl"]
    assert scores["qad"]["kl"] <= scores["ptq"]["kl"] + 1e-6
    assert {found["ranges"] for found in tries} == {"minmax", "percentile", "mse", "entropy"} and len(tries) >= 6


def test_ranges_move_with_the_weights_and_stand_still_at_the_end(line: Path) -> None:
    stages = json.loads((line / "runs/tiny_line/stages.json").read_text())
    folder = line / "runs/store" / stages["quantize"]
    quant, best = (json.loads((folder / name).read_text()) for name in ("quant.json", "scores.json"))
    assert (quant["ranges"]["ptq"] == quant["ranges"]["qad"]) == (best["training"]["best"]["step"] == 0)


def test_a_smoke_run_of_any_target_says_so_everywhere(line: Path, tmp_path: Path) -> None:
    edgekd("run", str(line / "tiny_line.py"), "--smoke", cwd=tmp_path)
    found = json.loads((tmp_path / "runs/tiny_line-smoke/report.json").read_text())
    assert found["smoke"] and found["headline"][0].startswith("SMOKE")
    assert json.loads((tmp_path / "dist/tiny_line-smoke/manifest.json").read_text())["smoke"]


WORK = {
    "teacher": "checkpoint.safetensors",
    "labels": "taught.logits.npy",
    "distill": "checkpoint.safetensors",
    "quantize": "checkpoint.safetensors",
    "export": "student_fp32/model.onnx",
    "bench": "raw/*.json",
}
"""A file by which one sees that a stage is in the middle of its work."""


@pytest.mark.slow
def test_a_line_killed_in_every_stage_ends_in_the_bytes_of_one_that_was_not(line: Path, tmp_path: Path) -> None:
    """Each process dies by SIGKILL amid the next stage's work; the one after it goes on there."""
    command = [sys.executable, "-m", "edgekd", "run", str(line / "tiny_line.py")]
    said, before = tmp_path / "said.txt", "nothing"
    for moment, file in WORK.items():
        with said.open("w") as stream:
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=stream)
            while process.poll() is None and not any(tmp_path.glob(f"runs/store/.partial-{moment}-*/{file}")):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert f"resuming {before}" in said.read_text() or before == "nothing"
        before = moment
    assert "resuming bench" in edgekd(*command[3:], "--to", "bench", cwd=tmp_path).stderr
    assert exported(line, tmp_path) == artifact(line)


@pytest.mark.gpu
def test_the_line_trains_on_a_gpu_and_measures_on_the_cpu(line: Path, tmp_path: Path) -> None:
    edgekd("run", str(line / "tiny_line.py"), "--device", "cuda", cwd=tmp_path)
    stages = json.loads((tmp_path / "runs/tiny_line/stages.json").read_text())
    for name in ("teacher", "labels", "distill", "quantize"):
        manifest = json.loads((tmp_path / "runs/store" / stages[name] / "manifest.json").read_text())
        assert manifest["device"] == "cuda", name
    assert edgekd("verify", "dist/tiny_line", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_two_ranks_under_torchrun_write_the_labels_of_one_process(line: Path, tmp_path: Path) -> None:
    stages = json.loads((line / "runs/tiny_line/stages.json").read_text())
    shutil.copytree(line / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/store" / stages["labels"])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "edgekd"]
    done = subprocess.run(
        [*launch, "run", str(line / "tiny_line.py"), "--to", "labels"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for file in (line / "runs/store" / stages["labels"]).glob("*.npy"):
        assert file.read_bytes() == (tmp_path / "runs/store" / stages["labels"] / file.name).read_bytes(), file.name
