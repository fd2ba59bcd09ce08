"""Which recipe teaches best, decided without the test split.

    python benchmarks/recipes.py STORE/teacher-<key> STORE/labels-<key> STORE/transfer-<key> TARGET...

Each TARGET (a name or a file) is a copy with another student or another way to distil. All learn from the same
finished label store, on four fifths of the training documents; the others and the validation split judge them, since
validation alone is too small to tell recipes apart. One line each, of the epoch with the lowest KL.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd import catalog
from edgekd.distill import evaluate, loop
from edgekd.distill.data import Ints, Tokens
from edgekd.distill.labels import LabelStore
from edgekd.models import loading
from edgekd.models import student as student_builder
from edgekd.progress import Progress
from edgekd.stages.common import set_lesson, tokenise_splits
from edgekd.store import Context, Stage
from edgekd.tasks import text_classification

HELD_OUT = 5  # one example in so many


class Rows:
    """Some rows of a label store's split."""

    def __init__(self, store: LabelStore, tokens: Tokens, kept: Ints) -> None:
        self.store, self.tokens, self.kept = store, tokens, kept

    def signal(self, rows: Ints, *_: object) -> Any:
        """The teacher's signal for ``rows`` of the kept ones."""
        rows = self.kept[rows]
        _, mask, flat = self.tokens.gather(rows)
        return self.store.signal(rows, self.tokens, mask, flat)


def only(tokens: Tokens, kept: Ints) -> Tokens:
    """Those rows alone."""
    flat = np.concatenate([np.arange(tokens.offsets[i], tokens.offsets[i + 1]) for i in kept])
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths[kept])]).astype(np.int64)
    return Tokens(tokens.ids[flat], tokens.starts[flat], offsets, tokens.labels[kept], tokens.pad_id)


def no_teacher() -> Any:
    """All answers are in the label store."""
    raise AssertionError("a recipe here has the stored labels alone")


def main() -> None:
    """Train each recipe and print how it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "labels", "transfer"):
        parser.add_argument(name, type=Path, help=f"folder of a finished {name} stage")
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    data = text_classification.read(given.transfer)
    big = loading.load_classifier(given.teacher / "model", data.labels, finetuned=True)
    documents = np.array([name.partition("#")[0] for name in data.taught.ids])  # of each text, windows too
    held = np.sort(np.random.default_rng(7).permutation(len(data.train))[: len(data.train) // HELD_OUT])
    kept = np.flatnonzero(~np.isin(documents, documents[held]))
    truth = np.concatenate(
        [LabelStore(given.labels, "validation").logits, LabelStore(given.labels, "taught").logits[held]]
    )
    for name in given.targets:
        target = catalog.load(name)
        length = target.student.reading(target.task).max_length
        model, tokenizer, summary = student_builder.build(
            target.student, big, given.teacher / "model", data, length, target.seed
        )
        tokens = tokenise_splits(tokenizer, data, length, ("taught", "validation"))
        judges = (tokens["validation"], only(tokens["taught"], held))

        def judge(model: Any = model, judges: tuple[Tokens, ...] = judges) -> dict[str, float]:
            found = np.concatenate([evaluate.logits(model, part) for part in judges])
            return evaluate.compare(found, np.concatenate([part.labels for part in judges]), truth)

        with tempfile.TemporaryDirectory() as out:
            context = Context(out=Path(out), device="cpu", threads=given.threads, progress=Progress())
            labels = Stage("labels", "", given.labels)
            lesson, _ = set_lesson(context, name, model, tokens, target.distill, labels, no_teacher, (), target.seed)
            teacher = Rows(lesson.teacher, tokens["taught"], kept)
            done = loop.fit(
                replace(lesson, tokens=only(tokens["taught"], kept), teacher=teacher, evaluate=judge),
                epochs=target.distill.epochs,
                options=target.distill.optimizer,
                seed=target.seed,
                out=context.out,
                progress=context.progress,
            )
        best = done["best"]
        print(
            f"{name}: {summary['parameters']:,} parameters, {done['step_ms']:.0f} ms a step, epoch {best['epoch']}: "
            f"score {best['score']:.4f}, agreement {best['agreement']:.4f}, KL {best['kl']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
