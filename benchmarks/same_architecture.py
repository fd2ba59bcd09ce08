"""The teacher against its own QAD int8 graph, and against what onnxruntime's dynamic quantization makes of it.

    python benchmarks/same_architecture.py RUN_STORE/store/teacher-<key> RUN_STORE/store/assets-<key>

The student is the fine-tuned teacher itself, nothing cut: the figure is what the graph alone is worth. Its quantizers
are calibrated on training examples and not trained further: that changes weights, not speed. The float graph and its
dynamic quantization are there twice: lean, after the same graph passes as ours, and as optimum exports it, which is
what users have today. Prints p50 at 16, 64 and 128 tokens, one thread, onnxruntime, and how many times as long as ours
each takes, as the median over interleaved rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
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
LENGTHS = ("fixed16", "fixed64", "fixed128")
OURS, OTHERS = "ours", ("fp32", "fp32, optimum", "dynamic", "dynamic, optimum")


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
            [Artifact(a, path.parent, out / "inputs.npz") for a, path in paths.items()],
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


def invalid(row: Row) -> str:
    """Why a row is no measurement, if it is none."""
    return "" if row["valid"] else f"  INVALID: {row['why_invalid']}"


if __name__ == "__main__":
    main()
