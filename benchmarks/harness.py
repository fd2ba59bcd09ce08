"""The harness held against truths known beforehand: ``python benchmarks/harness.py``.

Every line of the table is one claim, what was found, and whether it held; the exit code is 1 if one did not. Needs an
idle machine: on a busy one the rows are INVALID, which the table counts, and some claims cannot hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgekd import machine
from edgekd.bench.measure import Artifact, measure
from edgekd.bench.statistics import verdict
from edgekd.progress import Progress
from edgekd.tasks.text_classification import score

RUNTIMES = Path(__file__).with_name("known_runtimes.py")
PROGRESS = Progress(quiet=True)
Claim = tuple[str, str, bool]  # what should hold, what was found, whether it does


def main() -> int:
    """Check every claim and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="trials of each verdict (default 20)")
    parser.add_argument("--only", choices=CLAIMS, action="append", help="check this alone; may be given again")
    options = parser.parse_args()
    print(f"{machine.cpu_model()}, {machine.usable_threads()} CPUs, load {os.getloadavg()[0]:.1f}")
    good = True
    for name in options.only or CLAIMS:
        with tempfile.TemporaryDirectory() as folder:
            for claim, found, held in CLAIMS[name](Path(folder), options.trials):
                print(f"{'ok  ' if held else 'FAIL'}  {name:10}  {claim:62}  {found}", flush=True)
                good &= held
    return 0 if good else 1


def overhead(folder: Path, trials: int) -> Iterator[Claim]:
    """The empty loop, and a call that takes a millisecond by the clock, computed or half slept."""
    told = [_told(folder, "teacher_fp32", spin_ms=1.0), _told(folder, "sleeper", spin_ms=1.0, sleep_ms=0.5)]
    rows = _measure(told, folder / "out", f"{RUNTIMES}:known")
    for row, kind in zip(rows, ("computed", "half slept"), strict=True):
        share = row["overhead_share"]
        yield f"overhead below 1% of p50 at 1 ms ({kind})", f"{share:.3%}", share < 0.01
        p50 = row["p50_ms"]
        yield f"p50 of a call of 1 ms within 1% of 1 ms ({kind})", f"{p50:.4f} ms", abs(p50 - 1) < 0.01
    (row,) = _measure(told[:1], folder / "null", f"{RUNTIMES}:null")
    invalid = not row["valid"] and "harness itself" in row["why_invalid"]
    yield "a runtime that does nothing is INVALID: all is overhead", f"p50 {row['p50_ms'] * 1e6:.0f} ns", invalid


def verdicts(folder: Path, trials: int) -> Iterator[Claim]:
    """A model against its own copy, and against a copy whose calls take 5% longer."""
    artifacts = [_model(folder / name) for name in ("teacher_fp32", "copy", "slowed")]
    (folder / "slowed" / "slowdown.txt").write_text("0.05")
    found: dict[str, Counter[str]] = {"copy": Counter(), "slowed": Counter()}
    width = []
    for trial in range(trials):
        rows = _measure(artifacts, folder / f"out{trial}", f"{RUNTIMES}:ort_slowed")
        for row in rows[1:]:
            found[row["artifact"]][verdict(row["speedup_low"], row["speedup_high"]) if row["valid"] else "INVALID"] += 1
            width.append(row["speedup_high"] / row["speedup_low"] - 1)
    for name, expected, claim in (
        ("copy", "same", "of valid trials 19 in 20 call a copy the same"),
        ("slowed", "slower", "of valid trials 19 in 20 see 5% more time"),
    ):
        valid = trials - found[name]["INVALID"]
        text = ", ".join(f"{count} {kind}" for kind, count in found[name].most_common())
        enough = valid >= trials / 2 and found[name][expected] >= 0.95 * valid
        yield claim, f"{text}; interval {median(width):.1%} wide", enough


def memory(folder: Path, trials: int) -> Iterator[Claim]:
    """A child that touches 256 MiB, before and after this process has taken 1 GiB."""
    artifacts = [_told(folder, "teacher_fp32", spin_ms=0.1), _told(folder, "big", spin_ms=0.1, touch_mib=256)]
    little, big = _measure(artifacts, folder / "out", f"{RUNTIMES}:known", rounds=1)
    peak = big["peak_rss_mib"]
    yield "a child that touches 256 MiB reports 256 +- 8", f"{peak:.1f} MiB", abs(peak - 256) <= 8
    yield (
        "one that touches nothing reports less than 8",
        f"{little['peak_rss_mib']:.1f} MiB",
        little["peak_rss_mib"] < 8,
    )
    ballast = np.ones(2**27)
    _, again = _measure(artifacts, folder / "again", f"{RUNTIMES}:known", rounds=1)
    change = again["peak_rss_mib"] - peak + again["import_rss_mib"] - big["import_rss_mib"]
    yield f"a parent with {ballast.nbytes >> 20} MiB changes that by less than 5", f"{change:+.1f} MiB", abs(change) < 5


def neighbours(folder: Path, trials: int) -> Iterator[Claim]:
    """Two processes that compute all the time on the CPU that is measured on."""
    cpu = machine.pick_cpus(1)
    code = f"import os; os.sched_setaffinity(0, {cpu})\nwhile os.getppid() == {os.getpid()}: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        rows = _measure([_model(folder / "teacher_fp32"), _model(folder / "copy")], folder / "out", "ort_cpu")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    for row in rows:
        named = not row["valid"] and "other processes" in (row["why_invalid"] or "")
        yield f"with two busy neighbours {row['artifact']} is INVALID", row["why_invalid"] or "valid", named


def independent(folder: Path, trials: int) -> Iterator[Claim]:
    """The same file in the same library timed in turns by a program in C (``ort_loop.c``).

    A call from Python takes some microseconds more, which are its user's too: the model's call is long beside them.
    """
    artifact = _model(folder / "teacher_fp32", depth=30)
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    program = folder / "ort_loop"
    source = Path(__file__).with_name("ort_loop.c")
    subprocess.run(["cc", "-O2", str(source), "-ldl", "-o", str(program)], check=True)
    cpus = ",".join(map(str, machine.pick_cpus(1)))
    model = str(artifact.file("ort_cpu"))
    command = ["taskset", "--cpu-list", cpus, str(program), str(library), model, str(LENGTH), "300"]
    ours, theirs = [], []
    for turn in range(7):
        (row,) = _measure([artifact], folder / f"out{turn}", "ort_cpu", rounds=1, workload=f"fixed{LENGTH}")
        ours.append(row["p50_ms"])
        theirs.append(float(subprocess.run(command, capture_output=True, check=True).stdout))
    apart = median(mine / other for mine, other in zip(ours, theirs, strict=True)) - 1
    text = f"{median(ours):.4f} and {median(theirs):.4f} ms: {apart:+.2%}"
    yield "p50 agrees within 3% with a loop in C", text, abs(apart) < 0.03


CLAIMS: dict[str, Callable[[Path, int], Iterator[Claim]]] = {
    "overhead": overhead,
    "memory": memory,
    "verdicts": verdicts,
    "neighbours": neighbours,
    "independent": independent,
}

# ---------------------------------------------------------------------------------------------------------- ingredients

LENGTH, WIDTH, VOCABULARY = 32, 256, 1000


def _measure(
    artifacts: list[Artifact], out: Path, runtime: str, *, rounds: int = 5, calls: int = 200, workload: str = "real"
) -> list[dict[str, Any]]:
    return measure(
        artifacts,
        runtimes=[runtime],
        threads=[1],
        workloads={runtime: (workload,)},
        rounds=rounds,
        calls=calls,
        out=out,
        progress=PROGRESS,
        score=score,
    )


def _inputs(folder: Path) -> Path:
    examples = 50
    ids = np.random.default_rng(0).integers(0, VOCABULARY, examples * LENGTH)
    path = folder / "inputs.npz"
    np.savez(path, ids=ids, offsets=np.arange(examples + 1) * LENGTH, labels=np.zeros(examples, np.int64))
    return path


def _told(folder: Path, name: str, **behaviour: object) -> Artifact:
    (folder / name).mkdir()
    (folder / name / "model.onnx").write_text(json.dumps(behaviour))
    return Artifact(name, (folder / name,), _inputs(folder / name))


def _model(folder: Path, depth: int = 6) -> Artifact:
    """Embeddings and a stack of matrix products, about as long in a call as a small student."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights = {"table": rng.normal(size=(VOCABULARY, WIDTH))}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["h0"])]
    for layer in range(depth):
        weights[f"w{layer}"] = rng.normal(size=(WIDTH, WIDTH)) * WIDTH**-0.5
        nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"h{layer + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"h{depth}"], ["logits"], axes=[1], keepdims=0))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", WIDTH])
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "stack", [ids], [logits], initializers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return Artifact(folder.name, (folder,), _inputs(folder))


if __name__ == "__main__":
    sys.exit(main())
