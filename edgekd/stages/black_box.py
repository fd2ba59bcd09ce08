"""What the stages do where the teacher is a black box: ask it once, and keep what it says as a label store has it."""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import Any

from edgekd import spec
from edgekd.blackbox.ask import Asker
from edgekd.distill import evaluate
from edgekd.distill import labels as label_store
from edgekd.store import Context, Stage, write_json

SHAPE = {"layers": 0, "hidden": 0, "heads": 0}
"""Of what nobody sees."""


def ask(ctx: Context, teacher: spec.BlackBox, data: Any) -> None:
    """Write the answers on every split, as a label store has them, and ``scores.json``.

    The first question is asked, and the bill reckoned, before anything else: see ``edgekd.blackbox.ask``. What has no
    answer counts as wrong.
    """
    splits = {name: getattr(data, name) for name in ("validation", "test", "taught")}
    scores: dict[str, Any] = {"parameters": None, "model_type": "black box", "training": None}
    with closing(Asker(teacher, data.labels, ctx.out.parent, ctx.progress)) as asker:
        asker.prepare([text for part in splits.values() for text in part.texts])
        for name, part in splits.items():
            logits, known = asker.ask(part.texts, f"teacher: asking about {name}")
            label_store.write(ctx.out, name, logits, known)
            if name != "taught":
                scores[name] = {"score": float((evaluate.answers(logits, known) == part.labels).mean())}
    ctx.progress.log(f"teacher: validation {scores['validation']['score']:.4f}, test {scores['test']['score']:.4f}")
    write_json(ctx.out / "scores.json", scores)


def label(ctx: Context, teacher: Stage, taps: tuple[str, ...], classes: int, chosen: dict[str, object]) -> None:
    """Make a label store of the answers that the ``teacher`` stage was given; ``chosen`` goes into its index."""
    if ctx.rank > 0:
        return
    files = [file for split in ("taught", "validation") for file in teacher.path.glob(f"{split}.*.npy")]
    for file in files:
        shutil.copyfile(file, ctx.out / file.name)
    size = sum(file.stat().st_size for file in files)
    index = {"taps": list(taps), "teacher": SHAPE | {"classes": classes}, "bytes": size}
    write_json(ctx.out / "index.json", index | chosen)
