"""What training costs: the loop against a bare PyTorch one, distilling from stored labels against fine-tuning, and
a step under fake-quantization against one in fp32.

    python benchmarks/training.py [--steps 10] [--pairs 25]

One student (4 layers, 128 wide) trains on synthetic documents of Reuters' lengths. Each pair of runs starts from the
same weights and takes the same batches in the same order, one after the other; the figure is the median ratio of time
per step over the pairs: many short ones, since a shared host is slow for seconds at a time. The bare loop is what one
would write by hand: forward, backward, clip, AdamW, nothing else.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from edgekd import spec
from edgekd.distill import labels, loop
from edgekd.distill.data import Tokens, epoch_steps
from edgekd.distill.learner import Learner
from edgekd.distill.taps import LOGITS
from edgekd.progress import Progress
from edgekd.quant.quantizers import act_parameters
from edgekd.quant.replace import act_quantizers
from edgekd.stages.quantize import prepare

CLASSES, VOCABULARY, BATCH = 8, 6000, 32
QUIET = Progress(quiet=True)


def student() -> Any:
    """A random BERT of the demonstration's size."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=64, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def documents(count: int) -> Tokens:
    """Random tokens with the lengths of newswire cut at 64."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(64, rng.geometric(1 / 60, count) + 8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    return Tokens(ids, np.zeros_like(ids), offsets, rng.integers(0, CLASSES, count), 0)


def bare(model: Any, tokens: Tokens) -> float:
    """Seconds for one epoch of fine-tuning written by hand, on the batches that edgekd's loop takes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()
    began = time.perf_counter()
    for rows in epoch_steps(tokens.lengths, BATCH, 0, 0):
        ids, mask, _ = tokens.gather(rows)
        out = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64)))
        loss = torch.nn.functional.cross_entropy(out.logits, torch.from_numpy(tokens.labels[rows]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def ours(model: Any, tokens: Tokens, losses: tuple[spec.Loss, ...], store: Any) -> float:
    """Seconds that edgekd's loop spends on the same epoch (evaluation and the last checkpoint left out)."""
    ended = [0.0]

    def judge() -> dict[str, float]:
        ended[0] = time.perf_counter()
        return {"score": 0.0}

    task = loop.Task("bench", Learner(model, losses), tokens, store, judge)
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        loop.fit(
            task,
            epochs=1,
            options=spec.Optimizer(learning_rate=1e-4, batch_size=BATCH),
            seed=0,
            out=Path(out),
            progress=QUIET,
        )
    return ended[0] - began


def fake_quantized(model: Any, scales: str) -> Any:
    """A copy of ``model`` with its layers quantized, activations in a range that clips little."""
    quantized = prepare(copy.deepcopy(model), spec.Quant(keep_float=("classifier",), scales=scales))
    with torch.no_grad():
        for proxy in act_quantizers(quantized).values():
            scale, shift = act_parameters(proxy)
            scale.fill_(8.0)
            if shift is not None:
                shift.fill_(4.0)
    return quantized


def main() -> None:
    """Time the pairs and print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=25)
    given = parser.parse_args()
    tokens, model = documents(given.steps * BATCH), student()
    with tempfile.TemporaryDirectory() as folder:
        labels.compute(Path(folder), "train", tokens, model, LOGITS, torch.device("cpu"), QUIET)
        store = labels.LabelStore(Path(folder), "train")
        bare(copy.deepcopy(model), tokens)  # warm-up
        times: list[tuple[float, ...]] = []
        for _ in range(given.pairs):
            by_hand = bare(copy.deepcopy(model), tokens)
            finetune = ours(copy.deepcopy(model), tokens, (spec.CE(),), None)
            distill = ours(copy.deepcopy(model), tokens, (spec.KL(),), store)
            by_statistics, learned = (
                ours(fake_quantized(model, scales), tokens, (spec.KL(),), store) for scales in ("statistics", "learned")
            )
            times.append((by_hand, finetune, distill, by_statistics, learned))
    step_ms = [1e3 * statistics.median(column) / given.steps for column in zip(*times, strict=True)]
    names = ("bare loop", "fine-tuning", "distilling", "quantized", "quantized with learned scales")
    print("per step: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in zip(names, step_ms, strict=True)))
    for what, asked, ratios in (
        ("edgekd's loop over the bare loop", 1.05, [t[1] / t[0] for t in times]),
        ("distilling over fine-tuning", 1.10, [t[2] / t[1] for t in times]),
        ("quantized over fp32 distilling", 1.35, [t[3] / t[2] for t in times]),
        ("the same with learned scales", 1.35, [t[4] / t[2] for t in times]),
    ):
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{what}: {middle:.3f} (quartiles {low:.3f} to {high:.3f}; asked: at most {asked:.2f})")


if __name__ == "__main__":
    main()
