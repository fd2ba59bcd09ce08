"""A whole target small enough for a test: a random BERT in a folder, CSV data, a calibration list, a budget."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import tiny

from edgekd.models import loading

TARGET = '''"""A tiny target."""

import sys

from edgekd.spec import (
    KL, Bench, Budget, Device, Distill, Export, Finetune, HiddenMSE, Optimizer, Quant, Relations, RKD, Student,
    Target, Teacher, TextClassification,
)

TARGET = Target(
    name="{name}",
    task=TextClassification(
        train="file:{folder}/train.csv", test="file:{folder}/test.csv", max_length=16, transfer_words=8,
        licence="CC0-1.0",
    ),
    teacher=Teacher(
        source="dir:{folder}/teacher",
        finetune=Finetune(epochs={epochs}, optimizer=Optimizer(learning_rate=2e-3, batch_size=16)),
        licence="Apache-2.0",
    ),
    student=Student(layers=2, hidden=16, heads=4, ffn=24, vocabulary=70),
    distill=Distill(
        losses=(KL(1.0, temperature=2.0), HiddenMSE(0.1), Relations(0.1, heads=1), RKD(0.1, group=8)), epochs={epochs},
        optimizer=Optimizer(batch_size=16),
    ),
    quant=Quant(
        calibration="tiny", epochs=2, optimizer=Optimizer(learning_rate=1e-4, batch_size=16),
        keep_float=("*.attention.self.MatMul*", "classifier"),
    ),
    export=Export(min_agreement=0.9, max_score_gap=0.1),
    device=Device(name="any x86 with VNNI", isa="x86_64", features=("avx512_vnni|avx_vnni",)),
    bench=Bench(rounds=3, calls=20),
    budget=Budget(size_mib={size_mib}),
)

if __name__ == "__main__":
    from edgekd.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
'''


def write(folder: Path, *, name: str = "tiny_line", epochs: float = 2, size_mib: float = 1.0, **changes: Any) -> Path:
    """Write teacher, data, calibration list and target file into ``folder``; return the target's path."""
    folder.mkdir(parents=True, exist_ok=True)
    loading.save_model(tiny.bert(), tiny.fast(tiny.wordpiece()), folder / "teacher")
    for part, count, seed in (("train", 160, 1), ("test", 60, 3)):
        rows = tiny.split(count, seed)
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([text, tiny.LABELS[label]] for text, label in zip(rows.texts, rows.labels, strict=True))
    (folder / "calibration").mkdir(exist_ok=True)
    from edgekd import spec
    from edgekd.tasks import text_classification

    task = spec.TextClassification(train=f"file:{folder}/train.csv", test=f"file:{folder}/test.csv")
    ids = text_classification.draw_calibration(text_classification.load(task, 0), 32, 0)
    (folder / "calibration" / "tiny.txt").write_text("\n".join(ids) + "\n")
    text = TARGET.format(name=name, folder=folder, epochs=epochs, size_mib=size_mib)
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, str(new))
    path = folder / f"{name}.py"
    path.write_text(text)
    return path
