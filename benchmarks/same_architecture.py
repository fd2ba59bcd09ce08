"""The teacher against its own QAD int8 graph, and against what onnxruntime's dynamic quantization makes of it.

    python benchmarks/same_architecture.py RUN_STORE/store/teacher-<key> RUN_STORE/store/assets-<key>

The student is the fine-tuned teacher itself, nothing cut: the figure is what the graph alone is worth. Its quantizers
are calibrated on training examples and not trained further: that changes weights, not speed. The float graph and its
dynamic quantization are there twice: lean, after the same graph passes as ours, and as optimum exports it, which is
what users have today. Prints p50 at 16, 64 and 128 tokens, one thread, onnxruntime, and how many times as long as ours
each takes, as the median over interleaved rounds; then, by onnxruntime's own profiler, where the time of the lean float
graph and of ours goes at each length: what the matrix products take is the floor, however fast all else were.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime
from optimum.exporters.onnx import main_export

from edgekd import spec
from edgekd.bench.measure import Artifact, measure
from edgekd.bench.rows import Row
from edgekd.bench.statistics import speedup
from edgekd.distill.data import tokenise
from edgekd.models import loading
from edgekd.onnxio import audit, dynamic, export
from edgekd.progress import Progress
from edgekd.quant.calibrate import calibrate
from edgekd.stages.quantize import prepare
from edgekd.tasks import text_classification

KEEP_FLOAT = ("*.attention.self.MatMul*", "classifier")
TOKENS = (16, 64, 128)
LENGTHS = tuple(f"fixed{count}" for count in TOKENS)
OURS, OTHERS = "ours", ("fp32", "fp32, optimum", "dynamic", "dynamic, optimum")
SHOWN = 5
"""How many kinds of operators beside the products are printed."""


def main() -> None:
    """Export the graphs, time them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="folder of a finished teacher stage")
    parser.add_argument("assets", type=Path, help="folder of the assets stage it was trained on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=100)
    given = parser.parse_args()
    data = text_classification.read(given.assets)
    model = loading.load_classifier(given.teacher / "model", data.labels, finetuned=True, attention="eager").eval()
    tokenizer, pad_id = loading.fast_tokenizer(given.teacher / "model")
    tokens = tokenise(tokenizer, data.test.texts[:256], data.test.labels[:256], 128, pad_id)
    train = tokenise(tokenizer, data.train.texts[:256], data.train.labels[:256], 128, pad_id)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        paths = {which: out / which / "model.onnx" for which in (*OTHERS, OURS)}
        for path in paths.values():
            path.parent.mkdir()
        np.savez(out / "inputs.npz", ids=tokens.ids.astype(np.int64), offsets=tokens.offsets, labels=tokens.labels)
        export.export_float(model, paths["fp32"], opset=17)
        main_export(str(given.teacher / "model"), paths["fp32, optimum"].parent, task="text-classification", opset=17)
        for kind in ("", ", optimum"):
            dynamic.quantize_dynamic(paths[f"fp32{kind}"], paths[f"dynamic{kind}"])
        quant = spec.Quant(calibration="-", keep_float=KEEP_FLOAT)
        calibrate(prepare(model, quant), quant, train, np.arange(len(train)))
        export.export_quantized(model, paths[OURS], opset=17, keep_float=KEEP_FLOAT)
        found = audit.audit(paths[OURS], KEEP_FLOAT)
        print(f"{found['int8']} multiplications in int8, {found['float']} in float, by onnxruntime's optimized graph")
        rows = measure(
            [Artifact(a, (path.parent,), out / "inputs.npz") for a, path in paths.items()],
            runtimes=("ort_cpu",),
            threads=(1,),
            workloads={"ort_cpu": LENGTHS},
            rounds=given.rounds,
            calls=given.calls,
            out=out / "bench",
            progress=Progress(),
            score=text_classification.score,
            baseline="fp32",
        )
        profiles = [
            (count, name, profile(paths[name], count, given.calls)) for count in TOKENS for name in ("fp32", OURS)
        ]
    for workload in LENGTHS:
        row = {r["artifact"]: r for r in rows if r["workload"] == workload}
        ours = row[OURS]
        print(f"{workload}: ours {ours['p50_ms']:.3f} ms{invalid(ours)}")
        for name in OTHERS:
            ratio = speedup(row[name]["round_p50_ms"], ours["round_p50_ms"])
            print(
                f"  {name:17} {row[name]['p50_ms']:7.3f} ms, {ratio.value:.2f} times ours "
                f"({ratio.low:.2f} to {ratio.high:.2f}){invalid(row[name])}"
            )
    floors = {}
    for length, name, spent in profiles:
        show(length, name, spent)
        floors[length, name] = sum(ms for op, (_, ms) in spent.items() if op in audit.MULTIPLICATIONS)
    for length in TOKENS:
        print(
            f"{length} tokens: the products alone are {floors[length, 'fp32'] / floors[length, OURS]:.2f} times as fast"
        )


def profile(path: Path, length: int, calls: int) -> dict[str, tuple[int, float]]:
    """Operator -> how often it runs in one call at batch 1, and milliseconds of a call in all of these (the median)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(f".{length}"))
    runner = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    values = {"input_ids": np.arange(length) % 90 + 5, "attention_mask": np.ones(length, np.int64)}
    feed = {value.name: values.get(value.name, np.zeros(length, np.int64))[None] for value in runner.get_inputs()}
    for _ in range(calls):
        runner.run(None, feed)
    events = json.loads(Path(runner.end_profiling()).read_text(encoding="utf-8"))
    by_node: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("name", "").endswith("_kernel_time"):
            by_node[event["name"], event["args"]["op_name"]].append(event["dur"] / 1e3)
    times: dict[str, list[float]] = defaultdict(list)
    for (_, operator), durations in by_node.items():
        times[operator].append(statistics.median(durations[len(durations) // 10 :]))  # the first calls are warm-up
    return {operator: (len(medians), sum(medians)) for operator, medians in times.items()}


def show(length: int, name: str, spent: dict[str, tuple[int, float]]) -> None:
    """Print one profile: the products, then what takes most beside them."""
    total = sum(ms for _, ms in spent.values())
    products = {op: row for op, row in spent.items() if op in audit.MULTIPLICATIONS}
    floor = sum(ms for _, ms in products.values())
    rest = sorted((row for row in spent.items() if row[0] not in products), key=lambda row: -row[1][1])
    parts = ", ".join(f"{op} x{count} {ms:.3f}" for op, (count, ms) in [*products.items(), *rest[:SHOWN]])
    more = sum(ms for _, (_, ms) in rest[SHOWN:])
    print(f"{length} tokens, {name}: {total:.3f} ms in kernels, {floor:.3f} ({floor / total:.0%}) of it in products")
    print(f"  {parts}, others {more:.3f}")


def invalid(row: Row) -> str:
    """Why a row is no measurement, if it is none."""
    return "" if row["valid"] else f"  INVALID: {row['why_invalid']}"


if __name__ == "__main__":
    main()
