"""The shipped int8 file in OpenVINO against NNCF's own post-training quantization of the same fp32 student.

    pip install -c constraints.txt nncf==3.4.0
    python benchmarks/against_nncf.py RUN [--store runs] [--rounds 7] [--calls 100]

RUN is a finished run's name or folder. NNCF calibrates on the run's own calibration list and quantizes by its defaults
for transformers (``ModelType.TRANSFORMER``: the mixed preset, SmoothQuant, fast bias correction), from OpenVINO's
reading of the fp32 student's file. All are timed in OpenVINO, interleaved, in one run, on one thread, in float32 where
a graph is not quantized, at real lengths and at 16, 64 and 128 tokens; and scored, once, on the test split. Exits with
1 where NNCF's model is surely faster. Kept in RUN/against_nncf/: killed and started again, it goes on where it stopped.
Needs an idle machine: on a busy one the rows are INVALID. NNCF is no dependency of edgekd, and goes well beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from full_grid import WORKLOADS, of_a_run

from edgekd import catalog, store
from edgekd.bench.measure import Artifact, measure
from edgekd.bench.rows import Row
from edgekd.bench.statistics import speedup, verdict
from edgekd.distill.data import tokenise
from edgekd.models import loading
from edgekd.progress import Progress
from edgekd.quant.calibrate import calibration_rows
from edgekd.report import figures, schema
from edgekd.runtimes.openvino import openvino
from edgekd.stages.bench import artifacts
from edgekd.tasks import text_classification

RUNTIME = f"{Path(__file__).with_name('openvino_link.py')}:"
OURS, OTHERS = "student_qad", ("student_fp32", "student_ptq", "nncf")


def main() -> int:
    """Quantize, time, print."""
    return of_a_run(__doc__, compare)


def compare(run: Path, rounds: int, calls: int) -> int:
    """Time the run's students and NNCF's, ``rounds`` fresh processes of ``calls`` each; 1 if NNCF's is faster."""
    report = schema.load(run / "report.json")
    folders = {name: run.parent / "store" / stage["folder"] for name, stage in report["stages"].items()}
    students = [artifact for artifact in artifacts(folders["export"]) if artifact.name in (OURS, *OTHERS)]
    fp32 = next(artifact for artifact in students if artifact.name == "student_fp32")
    out = run / "against_nncf"
    link = out / "nncf" / "model.onnx"
    if not link.exists():
        quantize(fp32.file("ort_cpu"), calibration_feeds(report, folders), link)
    rows = measure(
        [*students, Artifact("nncf", (link.parent,), fp32.inputs)],
        runtimes=(RUNTIME,),
        threads=(1,),
        workloads={RUNTIME: WORKLOADS},
        rounds=rounds,
        calls=calls,
        out=out,
        progress=Progress(),
        score=text_classification.score,
        baseline="student_fp32",
    )
    store.write_json(out / "rows.json", rows)
    found = {(row["artifact"], row["workload"]): row for row in rows}
    for name in (OURS, *OTHERS):
        print(f"{name:13} {figures.percent(found[name, 'real']['score'])} on the test split")
    slower = False
    for workload in WORKLOADS:
        ours = found[OURS, workload]
        print(f"{workload}: {OURS} {ours['p50_ms']:.3f} ms{invalid(ours)}")
        for name in OTHERS:
            its = found[name, workload]
            ratio = speedup(its["round_p50_ms"], ours["round_p50_ms"])
            word = verdict(ratio.low, ratio.high)
            slower |= name == "nncf" and word == "slower"
            told = f"{ratio.value:.2f} times ours ({figures.span(ratio.low, ratio.high)}): ours is {word}"
            print(f"  {name:13} {its['p50_ms']:7.3f} ms, {told}{invalid(its)}")
    return int(slower)


def invalid(row: Row) -> str:
    """Why a row is no measurement, if it is none."""
    return "" if row["valid"] else f"  INVALID: {row['why_invalid']}"


def calibration_feeds(report: dict[str, Any], folders: dict[str, Path]) -> list[dict[str, np.ndarray]]:
    """One batch of one example for each id of the run's calibration list, as the student's file takes them."""
    data = text_classification.read(folders["assets"])
    rows = calibration_rows(catalog.calibration_ids(report["training"]["quantize"]["calibration"]), data.train.ids)
    tokenizer, pad_id = loading.fast_tokenizer(folders["distill"] / "model")
    texts = [data.train.texts[row] for row in rows]
    tokens = tokenise(tokenizer, texts, data.train.labels[rows], report["task"]["max_length"], pad_id)
    feeds = []
    for row in range(len(tokens)):
        ids, mask, _ = tokens.gather(np.array([row]))
        feeds.append({"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)})
    return feeds


def quantize(path: Path, feeds: list[dict[str, np.ndarray]], link: Path) -> None:
    """Write what NNCF makes of the ONNX file ``path`` as ``model.xml`` and ``model.bin``, and ``link`` to the first."""
    import nncf  # reports nothing: edgekd's runtime has made the package that would do it unimportable

    model = openvino.Core().read_model(path)
    names = {value.any_name for value in model.inputs}
    dataset = nncf.Dataset([{name: array for name, array in feed.items() if name in names} for feed in feeds])
    made = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds))
    link.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(made, link.with_suffix(".xml"), compress_to_fp16=False)
    link.symlink_to(link.with_suffix(".xml").name)


if __name__ == "__main__":
    sys.exit(main())
