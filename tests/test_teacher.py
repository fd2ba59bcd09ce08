"""Claims about the teacher stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from edgekd import spec
from edgekd.models import loading
from edgekd.stages import teacher
from edgekd.store import Context, Stage, read_json


@pytest.mark.parametrize("bf16", [False, True])
def test_a_teacher_is_trained_and_scored_in_bf16_where_the_machine_multiplies_it(
    tmp_path: Path, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading.save_model(tiny.bert(), tiny.fast(tiny.wordpiece()), tmp_path / "teacher")
    scored: list[bool] = []
    trained: list[bool] = []
    logits = teacher.evaluate.logits

    def score(*args: Any, **options: Any) -> Any:
        scored.append(options["autocast"])
        return logits(*args, **options)

    def fit(task: Any, **options: Any) -> dict[str, Any]:
        trained.append(task.autocast)
        return {}

    monkeypatch.setattr(teacher, "read_data", lambda task, assets: tiny.data())
    monkeypatch.setattr(teacher.evaluate, "logits", score)
    monkeypatch.setattr(teacher.loop, "fit", fit)
    bars = tiny.Bars()
    (tmp_path / "out").mkdir()
    teacher.run(
        Context(tmp_path / "out", "cpu", 1, bars, bf16=bf16),
        task=spec.TextClassification(train="train.csv", test="test.csv", max_length=16),
        teacher=spec.Teacher(source=f"dir:{tmp_path}/teacher", finetune=spec.Finetune()),
        assets=Stage("assets", "0", tmp_path),
        seed=0,
    )
    assert trained == [bf16] and scored == [bf16, bf16]
    assert bars.done == bars.total == {"teacher: scoring validation": 24, "teacher: scoring test": 24}
    assert np.isfinite(read_json(tmp_path / "out" / "scores.json")["test"]["score"])
