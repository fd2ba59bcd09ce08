"""What each loss costs: a training step under plain KL and the loss, against one under plain KL alone.

    python benchmarks/losses.py [--losses HiddenMSE RKD] [--rounds 7] [--steps 30] [--threads 1]

The student of ``training.py`` (4 layers, 128 wide) learns from a label store on disk that a random teacher of
MiniLM's shape (6 layers, 384 wide, 12 heads) filled, at batch 32 on documents of up to 64 tokens, in fp32 and under
fake-quantization. A step is all of it: reading the store, forward, backward, clipping, AdamW. Before each step under a
loss stands one under plain KL on the same batch. Each round begins with fresh students; the figure is the median over
the rounds of the ratio of their median steps, with its 95% interval. The row of KL, which is itself twice as a loss,
says how far to trust the others.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from training import BATCH, QUIET, VOCABULARY, documents, fake_quantized, student

from edgekd import spec
from edgekd.bench.statistics import speedup
from edgekd.distill import labels, taps
from edgekd.distill.data import Ints, Tokens, epoch_steps, micro_batches
from edgekd.distill.learner import Learner
from edgekd.distill.losses import LOSSES
from edgekd.distill.record import shape

ASKED = 1.25
"""Of losses on hidden states and on attention."""
BUDGETED = (*taps.HIDDEN, *taps.ATTENTION)
VARIANTS: tuple[spec.Loss, ...] = (
    spec.HiddenMSE(layers="final"),
    spec.HiddenMSE(layers="learned"),
    spec.HiddenCosine(layers="uniform"),
    spec.AttentionMaps(layers="final"),
    spec.AttentionMaps(divergence="kl"),
    spec.Relations(layers="uniform"),
    spec.RKD(group=32),
)
"""Beside every loss as it is by default."""


def teacher() -> Any:
    """A random BERT of MiniLM's shape."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        max_position_embeddings=64, num_labels=student().config.num_labels,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


class Lesson:
    """A fresh student under its losses and its optimizer; ``step`` says how many seconds a training step takes."""

    def __init__(self, model: Any, losses: tuple[spec.Loss, ...], tokens: Tokens, store: Path, big: Any) -> None:
        own, its = shape(model), shape(big)
        wanted = taps.needs(losses, own["layers"], its["layers"], 1)
        self.tokens, self.store = tokens, labels.LabelStore(store, "train", wanted, its["heads"])
        self.learner = Learner(model.train(), losses, its)
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def step(self, rows: Ints) -> float:
        """One training step on ``rows``."""
        began = time.perf_counter()
        for batch in micro_batches(self.tokens, rows, None, self.store, 0.5):
            self.learner(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def main() -> None:
    """Time every loss and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=sorted(kind.__name__ for kind in LOSSES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30, help="of each loss in a round")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    asked = [loss for loss in (*(kind() for kind in LOSSES), *VARIANTS) if wanted(loss, given.losses)]
    tokens, big = documents(10 * BATCH), teacher()
    with tempfile.TemporaryDirectory() as folder:
        everything = taps.Needs(tuple(range(7)), tuple(range(1, 7)), True)
        labels.compute(Path(folder), "train", tokens, big, everything, torch.device("cpu"), QUIET)
        students: dict[str, Callable[[], Any]] = {
            "fp32": student,
            "quantized": lambda: fake_quantized(student(), "statistics"),
        }
        print(f"{'loss':<44}" + "".join(f"{name:>30}" for name in students) + f"{'asked':>8}")
        for loss in asked:
            ratios = [timed(build, loss, tokens, Path(folder), big, given) for build in students.values()]
            limit = f"{ASKED:.2f}" if isinstance(loss, BUDGETED) else ""
            print(f"{told(loss):<44}" + "".join(f"{ratio:>30}" for ratio in ratios) + f"{limit:>8}", flush=True)


def timed(build: Callable[[], Any], loss: spec.Loss, tokens: Tokens, store: Path, big: Any, given: Any) -> str:
    """The ratio of the steps with and without ``loss``, its interval, and the step without."""
    plain: list[float] = []
    dearer: list[float] = []
    for turn in range(given.rounds):
        model = build()
        one = Lesson(copy.deepcopy(model), (spec.KL(),), tokens, store, big)
        other = Lesson(model, (spec.KL(), loss), tokens, store, big)
        rows = [rows for epoch in range(given.steps) for rows in epoch_steps(tokens.lengths, BATCH, turn, epoch)]
        rows = rows[: given.steps + 2]
        times = np.array([(one.step(part), other.step(part)) for part in rows])[2:]  # the first ones warm up
        plain.append(statistics.median(times[:, 0]))
        dearer.append(statistics.median(times[:, 1]))
    found = speedup(dearer, plain)
    sure = f" ({found.low:.3f} to {found.high:.3f})" if found.low is not None else ""
    return f"{found.value:.3f}{sure} {1e3 * statistics.median(plain):.0f} ms"


def wanted(loss: spec.Loss, names: list[str] | None) -> bool:
    """Whether it is of one of these kinds."""
    return names is None or type(loss).__name__ in names


def told(loss: spec.Loss) -> str:
    """The loss as a target would name it, with what is not by default."""
    default = type(loss)()
    changed = [f for f in dataclasses.fields(loss) if getattr(loss, f.name) != getattr(default, f.name)]
    return f"{type(loss).__name__}({', '.join(f'{f.name}={getattr(loss, f.name)!r}' for f in changed)})"


if __name__ == "__main__":
    main()
