"""The harness end to end: real child processes, small models, and runtimes that do what they are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from bag_of_words import CLASSES, VOCABULARY, bag_of_words
from hypothesis import given
from hypothesis import strategies as st

from edgekd import machine, runtimes, spec, store
from edgekd.bench import child, launch, measure, proc, rows, workloads
from edgekd.bench.canary import Canary
from edgekd.bench.measure import Artifact
from edgekd.errors import BenchError, StoreError
from edgekd.progress import Progress
from edgekd.stages import bench as bench_stage
from edgekd.tasks.text_classification import score

KNOWN = f"{Path(__file__).parents[1] / 'benchmarks' / 'known_runtimes.py'}:known"
QUIET = Progress(quiet=True)

CONTRACT = {
    *(
        "artifact",
        "runtime",
        "threads",
        "workload",
        "score",
        "agreement",
        "kl",
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "cold_ms",
    ),
    *("load_ms", "throughput_per_s", "peak_rss_mib", "import_rss_mib", "size_mib", "size_bytes", "speedup_vs_teacher"),
    *("speedup_low", "speedup_high", "calls", "rounds", "valid", "why_invalid", "round_p50_ms"),
}


def write_inputs(path: Path, *, examples: int = 12, labels: list[int] | None = None, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], rng.integers(3, 12, examples).cumsum()])
    ids = rng.integers(0, VOCABULARY, offsets[-1])
    if labels is None:
        labels = [int(ids[offsets[i] : offsets[i + 1]].sum()) % 2 for i in range(examples)]
    np.savez(path, ids=ids, offsets=offsets, labels=np.array(labels))
    return path


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path / "inputs.npz")


def told(folder: Path, inputs: Path, name: str, **behaviour: object) -> Artifact:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "model.onnx").write_text(json.dumps(behaviour))
    return Artifact(name, (folder / name,), inputs)


def run(artifacts, out, **change):
    options = {"runtimes": [KNOWN], "threads": [1], "workloads": {}, "rounds": 1, "calls": 5, "score": score, **change}
    return measure.measure(artifacts, out=out, progress=QUIET, **options)


# ------------------------------------------------------------------------------------------------------ whole rows


def test_rows_hold_what_onnx_models_are_and_do(tmp_path):
    expected, artifacts = {}, []
    for seed, name in enumerate(("teacher_fp32", "student_fp32")):
        (tmp_path / name).mkdir()
        bag_of_words(tmp_path / name / "model.onnx", seed=seed)
        (tmp_path / name / "model.onnx.data").write_bytes(b"0" * 1000)  # external data counts
        (tmp_path / name / "tokenizer.json").write_bytes(b"0" * 1000)  # the rest does not
        inputs = write_inputs(tmp_path / "inputs.npz", labels=[0, 1, 2] * 4)
        artifacts.append(Artifact(name, (tmp_path / name,), inputs))
        session = runtimes.get("ort_cpu").load(tmp_path / name / "model.onnx", 1)
        data = workloads.load(inputs)
        expected[name] = np.concatenate([session.run(workloads.feeds(data[i], session.inputs)) for i in range(12)])
    table = run(artifacts, tmp_path / "out", runtimes=["ort_cpu"], workloads={"ort_cpu": ("real", "fixed4")}, rounds=2)

    places = [(row["artifact"], row["workload"]) for row in table]
    assert places == [(a.name, workload) for workload in ("real", "fixed4") for a in artifacts]
    json.dumps(table, allow_nan=False)
    for row in table:
        assert set(row) >= CONTRACT
        size = (tmp_path / row["artifact"] / "model.onnx").stat().st_size + 1000
        assert (row["size_bytes"], row["size_mib"]) == (size, size / 2**20)
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert all(
            row[name] > 0 for name in ("cold_ms", "load_ms", "throughput_per_s", "peak_rss_mib", "import_rss_mib")
        )
        assert (row["calls"], row["rounds"], len(row["round_p50_ms"])) == (5, 2, 2)
        assert row["speedup_low"] <= row["speedup_vs_teacher"] <= row["speedup_high"]
        assert not row["valid"] and "5 calls a round" in row["why_invalid"] and "2 rounds" in row["why_invalid"]
    teacher, student, *fixed = table
    assert teacher["speedup_vs_teacher"] == teacher["agreement"] == 1.0 and teacher["kl"] == pytest.approx(0, abs=1e-12)
    for row in (teacher, student):
        assert row["score"] == (expected[row["artifact"]].argmax(1) == np.array([0, 1, 2] * 4)).mean()
    same = expected["teacher_fp32"].argmax(1) == expected["student_fp32"].argmax(1)
    assert student["agreement"] == same.mean() and student["kl"] > 0
    for row, real in zip(fixed, (teacher, student), strict=True):
        assert all(row[name] == real[name] is not None for name in ("score", "agreement", "kl"))


def test_enough_quiet_rounds_make_a_valid_row_and_no_child_has_torch(tmp_path, inputs, monkeypatch):
    monkeypatch.setattr(proc, "MAX_STOLEN", 1.0)  # the test machine may be busy; that is not what is asked here
    monkeypatch.setattr(proc, "MAX_NEIGHBOURS", 1.0)
    monkeypatch.setattr(rows, "MAX_SPREAD", 1e9)
    artifacts = [
        told(tmp_path, inputs, "teacher_fp32", spin_ms=0.2),
        told(tmp_path, inputs, "student_qad", spin_ms=0.1),
    ]
    table = run(artifacts, tmp_path / "out", rounds=5, calls=100)
    assert [row["why_invalid"] for row in table] == [None, None] and all(row["valid"] for row in table)
    assert [row["score"] for row in table] == [1.0, 1.0]  # the labels are what the known runtime names
    assert all(p50 >= 0.2 for p50 in table[0]["round_p50_ms"])  # a call cannot end before it ends
    assert len(list((tmp_path / "out/raw").glob("*.npz"))) == 10
    torch = told(tmp_path, inputs, "teacher_fp32", imports="torch")
    assert "torch was imported" in run([torch], tmp_path / "out2")[0]["why_invalid"]


def test_the_samples_are_kept_raw(tmp_path, inputs):
    run([told(tmp_path, inputs, "teacher_fp32")], tmp_path / "out", calls=7)
    (file,) = (tmp_path / "out/raw").glob("*.npz")
    with np.load(file, allow_pickle=False) as samples:
        assert samples["call_ns"].shape == samples["null_ns"].shape == (7,)
        assert samples["call_ns"].dtype == np.int64 and samples["logits"].shape == (12, 2)


# ---------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"die": "SIGSEGV"}, "crashed with SIGSEGV"),
        ({"die": "SIGKILL"}, "crashed with SIGKILL (out of memory?)"),
        ({"fail": "no kernel for Frob"}, "RuntimeError: no kernel for Frob"),
        ({"hang": True}, "took longer than 3 s"),
    ],
)
def test_a_runtime_that_fails_gives_a_row_with_the_reason_and_the_others_go_on(tmp_path, inputs, behaviour, reason):
    artifacts = [told(tmp_path, inputs, "teacher_fp32"), told(tmp_path, inputs, "bad", **behaviour)]
    good, bad = run(artifacts, tmp_path / "out", rounds=2, timeout_s=3)
    assert good["rounds"] == 2 and good["score"] == 1.0
    assert bad["why_invalid"] == reason and not bad["valid"]
    assert bad["p50_ms"] is None and bad["rounds"] == 0 and bad["size_bytes"] > 0
    assert not list((tmp_path / "out/raw").glob("bad*"))  # a failure is never kept


def test_a_full_disk_is_no_row_but_an_error(tmp_path, inputs):
    artifact = told(tmp_path, inputs, "teacher_fp32", fail="[Errno 28] No space left on device")
    with pytest.raises(StoreError, match="the disk is full"):
        run([artifact], tmp_path / "out")


def test_what_a_library_prints_is_not_taken_for_the_answer(tmp_path, inputs):
    (row,) = run([told(tmp_path, inputs, "teacher_fp32", print='{"load_ms": -1}\n')], tmp_path / "out")
    assert row["rounds"] == 1 and row["load_ms"] >= 0


def test_a_runtime_that_is_not_installed_is_a_skipped_row_for_each_artifact(tmp_path, inputs, monkeypatch):
    monkeypatch.setitem(runtimes.RUNTIMES, "absent", runtimes.Entry("x", "no_such_package", "pip install it"))
    artifacts = [told(tmp_path, inputs, "teacher_fp32"), told(tmp_path, inputs, "student_qad")]
    table = run(artifacts, tmp_path / "out", runtimes=["absent"], workloads={"absent": ("real", "fixed4")})
    assert [(row["artifact"], row["why_invalid"]) for row in table] == [
        ("teacher_fp32", "skipped: pip install it"),
        ("student_qad", "skipped: pip install it"),
    ]
    assert not any(row["valid"] or row["p50_ms"] for row in table)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_threads_are_the_least_of_what_is_asked_the_affinity_and_the_quota_and_are_counted(
    tmp_path, inputs, monkeypatch
):
    monkeypatch.setattr(machine, "cpu_quota", lambda root=None: 2.5)
    table = run([told(tmp_path, inputs, "teacher_fp32")], tmp_path / "out", threads=[1, 2, 64])
    assert [(row["threads"], row["rounds"]) for row in table] == [(1, 1), (2, 1)]
    assert {row["busy_threads"] for row in table} == {1}  # of a runtime that has one, whatever it is asked for
    monkeypatch.setattr(machine, "cpu_quota", lambda root=None: 0.5)
    (one,) = run([told(tmp_path, inputs, "teacher_fp32")], tmp_path / "other", threads=[4])
    assert one["threads"] == 1


def test_an_artifact_without_the_runtimes_file_is_a_row_that_says_so(tmp_path, inputs):
    (row,) = run([Artifact("student_qad", (tmp_path / "nowhere",), inputs)], tmp_path / "out")
    assert row["why_invalid"] == "there is no model.onnx of student_qad" and row["size_bytes"] is None


def test_a_model_with_an_input_that_nobody_can_feed_is_a_row_that_says_so(tmp_path, inputs):
    artifact = told(tmp_path, inputs, "teacher_fp32")
    text = Path(KNOWN.rpartition(":")[0]).read_text().replace('inputs = ("input_ids",)', 'inputs = ("pixels",)')
    (tmp_path / "vision.py").write_text(text)
    (row,) = run([artifact], tmp_path / "out", runtimes=[f"{tmp_path}/vision.py:known"])
    assert "'pixels'" in row["why_invalid"]


@pytest.mark.parametrize("change", [{"runtimes": ["tensorrt"]}, {"workloads": {KNOWN: ("fixed0",)}}])
def test_an_unknown_runtime_or_workload_is_an_error(tmp_path, inputs, change):
    with pytest.raises(BenchError):
        run([told(tmp_path, inputs, "teacher_fp32")], tmp_path / "out", **change)


# ------------------------------------------------------------------------------------------------------------ memory


def test_a_child_that_touches_256_mib_reports_256(tmp_path, inputs):
    artifacts = [told(tmp_path, inputs, "teacher_fp32"), told(tmp_path, inputs, "big", touch_mib=256)]
    little, big = run(artifacts, tmp_path / "out")
    assert little["peak_rss_mib"] < 8
    assert big["peak_rss_mib"] == pytest.approx(256, abs=8)
    assert big["import_rss_mib"] == pytest.approx(little["import_rss_mib"], abs=2)


def test_a_big_parent_does_not_change_a_childs_figure(tmp_path, inputs):
    artifact = told(tmp_path, inputs, "teacher_fp32", touch_mib=64)
    (before,) = run([artifact], tmp_path / "out1")
    ballast = np.ones(2**27)  # 1 GiB
    (after,) = run([artifact], tmp_path / "out2")
    assert ballast.nbytes == 2**30
    for name in ("peak_rss_mib", "import_rss_mib"):
        assert after[name] == pytest.approx(before[name], abs=5)


def test_the_peak_can_be_forgotten():
    ballast = np.ones(2**24)  # 128 MiB
    del ballast
    now, peak = proc.memory_mib()
    assert peak >= now
    if not proc.reset_peak():
        pytest.skip("not permitted here")
    now, peak = proc.memory_mib()
    assert peak == pytest.approx(now, abs=4)


# --------------------------------------------------------------------------------------------------- order and resume


@pytest.fixture
def launched(monkeypatch):
    """Every launched job in order; no process is started."""
    jobs: list[dict] = []
    answer = {"load_ms": 1.0, "cold_ms": 1.0, "import_rss_mib": 9.0, "peak_rss_mib": 1.0, "version": "1"}
    health = {"stolen": 0.0, "neighbours": 0.0, "settled": True, "busy_threads": 1, "calm_ns": 1}

    def fake(job, digest, timeout_s, calm_ns):
        if job["model"].endswith("fragile/model.onnx") and job["workload"] == "fixed4":
            raise launch.ChildFailed("broken")
        jobs.append(job)
        count = job["calls"]
        arrays = {"call_ns": np.full(count, 1_000_000), "null_ns": np.full(count, 100)}
        if job["score"]:
            arrays["logits"] = np.eye(2, dtype=np.float32)[np.zeros(12, int)]
        np.savez(job["samples"], **arrays)
        store.write_json(Path(job["samples"]).with_suffix(".json"), {"digest": digest, "answer": {**answer, **health}})
        return launch.kept(job, digest)

    monkeypatch.setattr(launch, "launch", fake)
    return jobs


def place(job: dict) -> tuple[str, str]:
    return Path(job["model"]).parent.name, job["workload"]


def test_artifacts_take_turns_within_a_round_and_every_other_round_goes_backwards(tmp_path, inputs, launched):
    artifacts = [told(tmp_path, inputs, name) for name in ("a", "b", "c")]
    run(artifacts, tmp_path / "out", rounds=3, workloads={KNOWN: ("real", "fixed4")})
    forwards = [(name, workload) for workload in ("real", "fixed4") for name in "abc"]
    backwards = [(name, workload) for workload in ("real", "fixed4") for name in "cba"]
    assert [place(job) for job in launched] == [*forwards, *backwards, *forwards]
    assert [place(job) for job in launched if job["score"]] == [("a", "real"), ("b", "real"), ("c", "real")]
    assert len({job["samples"] for job in launched}) == len(launched)


def test_a_runtime_that_is_timed_at_fixed_lengths_alone_is_scored_in_its_first_cell(tmp_path, launched, monkeypatch):
    monkeypatch.setattr(machine, "usable_threads", lambda profile=2: min(profile, 2))
    monkeypatch.setattr(machine, "pick_cpus", lambda count: list(range(count)))
    artifacts = [told(tmp_path, write_inputs(tmp_path / "inputs.npz", labels=[0] * 12), "a")]
    workloads = {KNOWN: ("fixed4", "fixed8"), "ort_cpu": ("fixed4", "real")}
    table = run(artifacts, tmp_path / "out", runtimes=list(workloads), threads=[1, 2], workloads=workloads, rounds=2)
    asked = [(job["runtime"], job["threads"], job["workload"]) for job in launched if job["score"]]
    assert asked == [(KNOWN, 1, "fixed4"), (KNOWN, 2, "fixed4"), ("ort_cpu", 1, "real"), ("ort_cpu", 2, "real")]
    assert [row["score"] for row in table] == [1.0] * 8


def test_the_memory_of_a_fixed_length_is_not_that_of_the_documents_scored_after_it(tmp_path):
    (tmp_path / "a").mkdir()
    bag_of_words(tmp_path / "a" / "model.onnx")
    tokens = 2**20  # whose embeddings alone, of 8 floats each, are 32 MiB
    np.savez(tmp_path / "long.npz", ids=np.ones(tokens, np.int64), offsets=[0, tokens - 4, tokens], labels=[0, 0])
    artifact = Artifact("a", (tmp_path / "a",), tmp_path / "long.npz")
    fixed, real = (
        run([artifact], tmp_path / workload, runtimes=["ort_cpu"], workloads={"ort_cpu": (workload,)})[0]
        for workload in ("fixed4", "real")
    )
    assert fixed["peak_rss_mib"] < 32 < real["peak_rss_mib"]
    assert fixed["score"] == real["score"] is not None


def test_a_failure_ends_the_artifact_in_that_cell_alone(tmp_path, inputs, launched):
    artifacts = [told(tmp_path, inputs, name) for name in ("teacher_fp32", "fragile")]
    table = run(artifacts, tmp_path / "out", rounds=2, workloads={KNOWN: ("real", "fixed4")})
    reasons = {(row["artifact"], row["workload"]): row["why_invalid"] for row in table}
    assert reasons["fragile", "fixed4"] == "broken" and "broken" not in reasons["fragile", "real"]
    assert [row["rounds"] for row in table] == [2, 2, 2, 0]


def test_a_second_call_reuses_everything(tmp_path, inputs, launched):
    artifacts = [told(tmp_path, inputs, name) for name in ("teacher_fp32", "student_qad")]
    first = run(artifacts, tmp_path / "out", rounds=2)
    count = len(launched)
    assert run(artifacts, tmp_path / "out", rounds=2) == first
    assert len(launched) == count
    run(artifacts, tmp_path / "out", rounds=3)  # more rounds: the old ones stay
    assert len(launched) == count + 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.with_suffix(".json").unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:50]),
        lambda file: file.with_suffix(".json").write_text('{"digest": "'),
        lambda file: file.with_suffix(".json").write_text("[]"),
    ],
)
def test_a_result_that_is_not_whole_has_its_round_of_the_cell_measured_again(tmp_path, inputs, launched, damage):
    artifacts = [told(tmp_path, inputs, name) for name in ("teacher_fp32", "student_qad")]
    run(artifacts, tmp_path / "out", rounds=2)
    (file,) = (tmp_path / "out/raw").glob("student_qad*.r1.npz")
    damage(file)
    launched.clear()
    run(artifacts, tmp_path / "out", rounds=2)
    assert [place(job)[0] for job in launched] == ["student_qad", "teacher_fp32"]  # both: a ratio is of neighbours
    assert all(job["samples"].endswith(".r1.npz") for job in launched)


def test_another_model_or_other_calls_are_not_taken_from_what_is_kept(tmp_path, inputs, launched):
    artifact = told(tmp_path, inputs, "teacher_fp32")
    run([artifact], tmp_path / "out")
    told(tmp_path, inputs, "teacher_fp32", spin_ms=1)
    run([artifact], tmp_path / "out")
    run([artifact], tmp_path / "out", calls=6)
    write_inputs(inputs, seed=1)
    run([artifact], tmp_path / "out", calls=6)
    assert len(launched) == 4


SCRIPT = """
import json, sys
from pathlib import Path
from edgekd.bench.measure import Artifact, measure
from edgekd.progress import Progress
from edgekd.tasks.text_classification import score
folder, runtime = Path(sys.argv[1]), sys.argv[2]
artifacts = [Artifact(name, (folder / name,), folder / "inputs.npz") for name in ("teacher_fp32", "slow")]
options = dict(runtimes=[runtime], threads=[1], workloads={}, rounds=2, calls=5, out=folder / "out", score=score)
table = measure(artifacts, progress=Progress(quiet=True), **options)
print(json.dumps([row["rounds"] for row in table]))
"""


def test_a_killed_run_leaves_no_child_behind_and_the_next_one_goes_on(tmp_path, inputs):
    told(tmp_path, inputs, "teacher_fp32")
    told(tmp_path, inputs, "slow", hang=True)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), KNOWN]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment) as parent:
        kept = tmp_path / "out/raw"
        wait_until(lambda: list(kept.glob("teacher_fp32*.json")))
        wait_until(lambda: any("edgekd.bench.child" in p.cmdline() for p in psutil.Process(parent.pid).children()))
        (orphan,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
    told(tmp_path, inputs, "slow")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [2, 2]
    assert not list(kept.glob("*.tmp"))


def wait_until(true, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


# -------------------------------------------------------------------------------------------------- warm-up, neighbours


class FakeClock:
    """Time that passes only in calls: the n-th costs ``cost(n)`` nanoseconds."""

    def __init__(self, monkeypatch, cost):
        self.now, self.calls, self.cost = 0, 0, cost
        monkeypatch.setattr(child.time, "perf_counter_ns", lambda: self.now)

    def call(self, feeds):
        self.now += int(self.cost(self.calls))
        self.calls += 1


def prepared(*lengths: int) -> list[dict]:
    return [{"input_ids": np.zeros((1, length), np.int64)} for length in lengths]


def test_warming_up_goes_on_while_calls_get_faster(monkeypatch):
    clock = FakeClock(monkeypatch, lambda n: 1e6 * (1 + 9 * 0.9 ** (n / 4)))  # slow to warm
    count, settled = child.warm_up(clock.call, prepared(5) * 4, passes=3, calls_per_pass=4, gain=0.02, limit_s=5)
    assert settled and count == clock.calls and clock.cost(count) < 1.1e6


def test_warming_up_ends_early_when_there_is_nothing_to_gain(monkeypatch):
    clock = FakeClock(monkeypatch, lambda n: 1e6)
    assert child.warm_up(clock.call, prepared(5) * 9, passes=3, calls_per_pass=4, gain=0.02, limit_s=5) == (17, True)


def test_warming_up_is_bounded_and_says_so(monkeypatch):
    clock = FakeClock(monkeypatch, lambda n: 1e9 * 0.99**n)  # never stops to improve
    _, settled = child.warm_up(clock.call, prepared(5) * 4, passes=3, calls_per_pass=4, gain=0.02, limit_s=20)
    assert not settled and clock.now < 30e9


def test_a_model_whose_shapes_alone_take_all_the_time_is_still_seen_to_get_no_faster(monkeypatch):
    clock = FakeClock(monkeypatch, lambda n: 1e9)
    assert child.warm_up(clock.call, prepared(*range(1, 9)), passes=3, calls_per_pass=4, gain=0.02, limit_s=5) == (
        24,
        True,
    )


def test_warming_up_shows_every_shape_once(monkeypatch):
    seen = []
    clock = FakeClock(monkeypatch, lambda n: 1e6)
    shapes = [3, 7, 3, 9, 7, 11]

    def call(feeds):
        seen.append(feeds["input_ids"].shape[1])
        clock.call(feeds)

    child.warm_up(call, prepared(*shapes), passes=1, calls_per_pass=2, gain=0.02, limit_s=5)
    assert sorted(seen[:4]) == [3, 7, 9, 11]


def usage(**change) -> proc.Usage:
    values = {"wall_s": 1.0, "cpu_s": 1.0, "waited_s": 0.0, "voluntary_switches": 0, "involuntary_switches": 0}
    return proc.Usage(**{**values, "busy_threads": 1, "others_s": 0.0, "cpus": 2, **change})


@pytest.mark.parametrize(
    ("change", "threads", "stolen"),
    [
        ({}, 1, 0.0),
        ({"waited_s": 0.3, "cpu_s": 0.7}, 1, 0.3),  # queued for a CPU
        ({"waited_s": 0.0, "cpu_s": 0.8}, 1, 0.2),  # the hypervisor gave it to somebody else
        ({"waited_s": None, "cpu_s": 0.8}, 1, 0.2),  # a kernel that does not count
        ({"cpu_s": 0.1, "voluntary_switches": 100}, 1, 0.0),  # slept by itself
        ({"waited_s": 0.4, "cpu_s": 1.6}, 2, 0.2),
    ],
)
def test_what_neighbours_took_is_told_from_sleeping(change, threads, stolen):
    assert usage(**change).stolen(threads, calls=100) == pytest.approx(stolen)


def test_what_others_do_is_a_share_of_all_cpus():
    assert usage(others_s=1.0, cpus=2).neighbours() == 0.5
    assert usage(others_s=1.0, cpus=64).neighbours() == 1 / 64


def test_a_disturbed_attempt_is_repeated_and_a_slow_one_is_not(monkeypatch):
    monkeypatch.setattr(child, "PAUSES_S", (0.0, 0.0, 0.0))
    told = {"stolen": lambda self, threads, calls: next(stolen), "neighbours": lambda self: next(neighbours)}
    for name, method in told.items():
        monkeypatch.setattr(proc.Usage, name, method)
    for steals, besides, expected in (
        ([0.0], [0.0], [0.0]),
        ([0.3, 0.0], [0.0, 0.0], [6.0, 0.0]),
        ([0.0, 0.0, 0.0], [0.3, 0.9, 0.45], [2.0, 6.0, 3.0]),
    ):
        stolen, neighbours = iter(steals), iter(besides)
        found = list(child._attempts(lambda feeds: time.sleep(0.001), prepared(3) * 4, 1, Canary()))
        assert [disturbed for disturbed, _, _, _ in found] == pytest.approx(expected)
        assert all((ns >= 1_000_000).all() for _, _, ns, _ in found)


def test_a_meter_counts_the_threads_that_work():
    meter, end = proc.Meter(), time.perf_counter() + 0.1
    while time.perf_counter() < end:
        pass
    found = meter.stop()
    assert found.wall_s >= 0.1 and 0 < found.cpu_s <= 1.2 * found.wall_s
    assert found.busy_threads <= 1


# --------------------------------------------------------------------------------------------------------- workloads

splits = st.lists(st.integers(1, 9), min_size=1, max_size=20).map(
    lambda lengths: workloads.Inputs(
        ids=np.arange(sum(lengths)), offsets=np.concatenate([[0], np.cumsum(lengths)]), labels=np.zeros(len(lengths))
    )
)


@given(splits, st.integers(1, 40))
def test_real_calls_are_examples_in_their_order_spread_over_the_split(inputs, count):
    found = workloads.calls("real", inputs, count)
    assert len(found) == count
    where = [int(np.flatnonzero(inputs.offsets == tokens[0])[0]) for tokens in found]
    assert all((inputs[place] == tokens).all() for place, tokens in zip(where, found, strict=True))
    if count <= len(inputs):
        assert where == sorted(set(where))  # in order, none twice
        assert max(np.diff([*where, len(inputs)])) <= -(-len(inputs) // count) + 1  # no part of the split left out
    else:
        assert where == [index % len(inputs) for index in range(count)]


@given(splits, st.integers(1, 30), st.integers(1, 12))
def test_fixed_calls_are_consecutive_windows_of_the_tokens(inputs, length, count):
    found = workloads.calls(f"fixed{length}", inputs, count)
    assert all(tokens.shape == (length,) for tokens in found)
    flat = np.concatenate(found)
    assert (flat == np.arange(length * count) % len(inputs.ids)).all()


@given(st.text(max_size=12))
def test_a_workload_is_real_or_fixed_and_a_number(text):
    if text != "real" and not (text.startswith("fixed") and text[5:].isdecimal() and text[5] != "0"):
        with pytest.raises(BenchError, match="unknown workload"):
            workloads.fixed_length(text)


def test_feeds_are_only_what_the_model_asks_for():
    found = workloads.feeds(np.array([5, 6]), ("attention_mask", "input_ids"))
    assert {name: array.tolist() for name, array in found.items()} == {
        "attention_mask": [[1, 1]],
        "input_ids": [[5, 6]],
    }
    assert workloads.feeds(np.array([5, 6]), ("token_type_ids",))["token_type_ids"].tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "arrays",
    [
        {"ids": [1, 2], "offsets": [0, 2]},
        {"ids": [1, 2], "offsets": [0, 1], "labels": [0]},
        {"ids": [1, 2], "offsets": [1, 2], "labels": [0]},
        {"ids": [1, 2], "offsets": [0, 2, 2], "labels": [0, 1]},
        {"ids": [1, 2], "offsets": [0, 2], "labels": [0, 1]},
        {"ids": [], "offsets": [0], "labels": []},
    ],
)
def test_inputs_that_do_not_fit_together_are_an_error(tmp_path, arrays):
    np.savez(tmp_path / "inputs.npz", **{name: np.array(values, np.int64) for name, values in arrays.items()})
    with pytest.raises(BenchError, match="export stage again"):
        workloads.load(tmp_path / "inputs.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_npz_is_an_error(tmp_path, content):
    (tmp_path / "inputs.npz").write_bytes(content)
    with pytest.raises(BenchError, match="cannot read"):
        workloads.load(tmp_path / "inputs.npz")


# ------------------------------------------------------------------------------------------------------------- stage


def test_the_stage_writes_rows_samples_and_what_this_machine_is(tmp_path):
    export = tmp_path / "export"
    (export / "inputs").mkdir(parents=True)
    for name in ("teacher", "student"):
        write_inputs(export / "inputs" / f"{name}.npz", labels=[0, 1, 2] * 4)
    for seed, name in enumerate(bench_stage.ARTIFACTS):
        (export / name).mkdir()
        bag_of_words(export / name / "model.onnx", seed=seed)
    out = tmp_path / "out"
    out.mkdir()
    bench_stage.run(
        store.Context(out=out, device="cpu", threads=1, progress=QUIET),
        task=spec.TextClassification(train="x", test="y"),
        bench=spec.Bench(rounds=1, calls=5),
        export=store.Stage("export", "0" * 16, export),
        assets=store.Stage("assets", "0" * 16, tmp_path),
        machine=machine.fingerprint(),
        session={"session.disable_prepacking": "1"},
        conversions=(),
    )
    table, environment = store.read_json(out / "rows.json"), store.read_json(out / "environment.json")
    assert [row["artifact"] for row in table] == list(bench_stage.ARTIFACTS)
    assert all(row["score"] is not None and row["agreement"] is not None for row in table)
    assert environment["machine"] == machine.fingerprint()
    assert environment["versions"]["onnxruntime"]
    assert environment["session"] == {"session.disable_prepacking": "1"}
    assert len(list((out / "raw").glob("*.npz"))) == 5
    assert CLASSES == 3  # the labels above


# --------------------------------------------------------------------------------------------------------- full grid


def test_the_full_grid_times_every_artifact_of_a_run_everywhere_and_goes_on_where_it_stopped(
    tmp_path, launched, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import full_grid

    monkeypatch.setattr(machine, "usable_threads", lambda profile=2, root=None: min(profile or 2, 2))
    monkeypatch.setattr(machine, "pick_cpus", lambda count: list(range(count)))
    device = {"name": "another", "isa": "none"}
    kept = {"stages": {"export": {"folder": "export-0"}}, "training": {}, "device": device}
    monkeypatch.setattr(full_grid.schema, "load", lambda path: kept)
    export = tmp_path / "store" / "export-0"
    (export / "inputs").mkdir(parents=True)
    for name in ("teacher", "student"):
        write_inputs(export / "inputs" / f"{name}.npz")
    for name in bench_stage.ARTIFACTS:
        told(export, tmp_path, name)
    text = full_grid.grid(tmp_path / "mine", rounds=1, calls=3)
    assert len(launched) == 5 * 2 * 2 * 4
    assert text.count("\n### ") == 2 * 4  # both runtimes in one table
    assert text.count("| student, shipped int8 |") == 2 * 2 * 4
    assert text.count("host-proxy") >= 5 * 2 * 2 * 4  # every row, measured on what is no such device
    assert full_grid.grid(tmp_path / "mine", rounds=1, calls=3) == text
    assert len(launched) == 5 * 2 * 2 * 4
