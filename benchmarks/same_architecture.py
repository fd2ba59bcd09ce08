"""The teacher against its own QAD int8 graph, and against what onnxruntime's dynamic quantization makes of it.

    python benchmarks/same_architecture.py RUN_STORE/store/teacher-<key> RUN_STORE/store/assets-<key>

The student is the fine-tuned teacher itself, nothing cut: the figure is what the graph alone is worth. Its quantizers
are calibrated on training examples and not trained further: that changes weights, not speed.
Prints p50 and ratios at 16, 64 and 128 tokens, one thread, onnxruntime, interleaved rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from edgekd import spec
from edgekd.bench.measure import Artifact, measure
from edgekd.distill.data import tokenise
from edgekd.models import loading
from edgekd.onnxio import audit, dynamic, export
from edgekd.progress import Progress
from edgekd.quant.calibrate import calibrate
from edgekd.stages.quantize import prepare
from edgekd.tasks import text_classification

KEEP_FLOAT = ("*.attention.self.MatMul*", "classifier")
LENGTHS = ("fixed16", "fixed64", "fixed128")


def main() -> None:
    """Export the three graphs, time them, print the table."""
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
        paths = {a: out / a / "model.onnx" for a in ("teacher_fp32", "teacher_ort_dynamic", "student_qad")}
        for path in paths.values():
            path.parent.mkdir()
        np.savez(out / "inputs.npz", ids=tokens.ids.astype(np.int64), offsets=tokens.offsets, labels=tokens.labels)
        export.export_float(model, paths["teacher_fp32"], opset=17)
        dynamic.quantize_dynamic(paths["teacher_fp32"], paths["teacher_ort_dynamic"])
        quant = spec.Quant(calibration="-", keep_float=KEEP_FLOAT)
        calibrate(prepare(model, quant), quant, train, np.arange(len(train)))
        export.export_quantized(model, paths["student_qad"], opset=17, keep_float=KEEP_FLOAT)
        found = audit.audit(paths["student_qad"], KEEP_FLOAT)
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
        )
    print(f"{'workload':>9} {'fp32 ms':>8} {'dynamic':>8} {'ours':>8} {'fp32/ours':>22} {'dynamic/ours':>13}")
    for workload in LENGTHS:
        row = {r["artifact"]: r for r in rows if r["workload"] == workload}
        fp32, rival, ours = (row[a] for a in paths)
        each = zip(rival["round_p50_ms"], ours["round_p50_ms"], strict=True)
        ratio = float(np.median([a / b for a, b in each]))
        interval = f"{ours['speedup_vs_teacher']:.2f} ({ours['speedup_low']:.2f}..{ours['speedup_high']:.2f})"
        invalid = "; ".join(str(r["why_invalid"]) for r in row.values() if not r["valid"])
        print(
            f"{workload:>9} {fp32['p50_ms']:8.3f} {rival['p50_ms']:8.3f} {ours['p50_ms']:8.3f} {interval:>22} "
            f"{ratio:13.2f} {invalid and 'INVALID: ' + invalid}"
        )


if __name__ == "__main__":
    main()
