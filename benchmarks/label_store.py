"""What reading a label store costs: memory from 10 thousand to a million examples, and examples a second.

    python benchmarks/label_store.py [--examples 10000 1000000] [--steps 300] [--gpu-step-ms 10]

Stores of zeros (sparse files, which take no room on disk), every example of 64 tokens: logits of 8 classes alone, and
with the 384-wide hidden states of one layer. A fresh process for each draws the batches of 32 of an epoch as training
does, and reads as many of them whatever the size. Memory is the highest anonymous one of the process (``RssAnon``):
pages of the mapped files are the kernel's to take back, and are given apart. Then the student of ``training.py`` learns
from the same store: the share of its step that is reading, and what a GPU would leave for it, of which nothing is
measured here but what ``--gpu-step-ms`` supposes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import BATCH, CLASSES, student

from edgekd import spec
from edgekd.distill.data import Batch, Tokens, epoch_steps, micro_batches
from edgekd.distill.labels import LabelStore
from edgekd.distill.learner import Learner
from edgekd.distill.taps import LOGITS, Needs

LENGTH, WIDTH = 64, 384
TEACHER = {"layers": 6, "hidden": WIDTH, "heads": 12}
KINDS: dict[str, tuple[Needs, tuple[spec.Loss, ...]]] = {
    "logits": (LOGITS, (spec.KL(),)),
    "logits and hidden states": (Needs(hidden=(6,)), (spec.KL(), spec.HiddenMSE(layers="final"))),
}
FLAT = 0.10


def main() -> None:
    """Make the stores, read them in processes of their own, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--train-steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu-step-ms", type=float, default=10.0, help="supposed, not measured")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        print(json.dumps(read(Path(given.child[0]), given.child[1], given.steps, given.train_steps)))
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for count in given.examples:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), count)
            for kind, rows in found.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--child", folder, kind]
                rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                print(f"{count:,} examples, {kind}: {told(rows[-1], given.gpu_step_ms)}", flush=True)
    for kind, rows in found.items():
        ratio = rows[-1]["anonymous_mib"] / rows[0]["anonymous_mib"]
        print(
            f"{kind}: memory at {given.examples[-1]:,} examples over that at {given.examples[0]:,}: {ratio:.3f} "
            f"(asked: {1 - FLAT:.2f} to {1 + FLAT:.2f})"
        )


def make(folder: Path, count: int) -> None:
    """A store of zeros, and the ids of a student with the teacher's tokenizer."""
    shapes: dict[str, Any] = {
        "logits": ((count, CLASSES), np.float32),
        "hidden.6": ((count * LENGTH, WIDTH), np.float16),
        "starts": ((count * LENGTH,), np.int32),
        "offsets": ((count + 1,), np.int64),
        "ids": ((count * LENGTH,), np.int32),
    }
    files = {
        name: np.lib.format.open_memmap(folder / f"train.{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in shapes.items()
    }
    files["starts"].reshape(count, LENGTH)[:] = [-1, *range(0, 5 * (LENGTH - 2), 5), -1]
    files["offsets"][:] = LENGTH * np.arange(count + 1)


def read(folder: Path, kind: str, steps: int, train_steps: int) -> dict[str, float]:
    """Read ``steps`` batches, then train for some: memory in MiB, seconds a batch and a training step."""
    begun = resident()[0]
    ids, starts, offsets = (np.load(folder / f"train.{n}.npy", mmap_mode="r") for n in ("ids", "starts", "offsets"))
    tokens = Tokens(ids, starts, np.array(offsets), np.zeros(len(offsets) - 1, np.int64), 0)
    needs, losses = KINDS[kind]
    store = LabelStore(folder, "train", needs, TEACHER["heads"])
    peak, reading = list(resident()), []
    for _ in batches(tokens, store, steps, reading):
        peak = [max(one, other) for one, other in zip(peak, resident(), strict=True)]
    learner = Learner(student().train(), losses, TEACHER)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-4, fused=True)
    shares, whole = [], []
    again: list[float] = []
    for batch in batches(tokens, store, train_steps, again):
        began = time.perf_counter()
        learner(batch).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        whole.append(time.perf_counter() - began + again[-1])
        shares.append(again[-1] / whole[-1])
    return {
        "begun_mib": begun,
        "anonymous_mib": peak[0],
        "mapped_mib": peak[1],
        "read_s": statistics.median(reading),
        "step_s": statistics.median(whole),
        "share": statistics.median(shares),
    }


def batches(tokens: Tokens, store: LabelStore, count: int, seconds: list[float]) -> Iterator[Batch]:
    """That many batches as training takes them; the seconds that each took go to ``seconds``."""
    epoch = 0
    while count > 0:
        steps = epoch_steps(tokens.lengths, BATCH, 0, epoch)[:count]
        count, epoch = count - len(steps), epoch + 1
        for rows in steps:
            began = time.perf_counter()
            (batch,) = micro_batches(tokens, rows, None, store)
            seconds.append(time.perf_counter() - began)
            yield batch


def resident() -> tuple[float, float]:
    """MiB of this process that are its own, and that are pages of files: ``RssAnon`` and ``RssFile``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return int(found["RssAnon"].split()[0]) / 1024, int(found["RssFile"].split()[0]) / 1024


def told(row: dict[str, float], gpu_step_ms: float) -> str:
    """One store's figures in words."""
    reading = 1e3 * row["read_s"]
    return (
        f"{row['anonymous_mib']:.0f} MiB ({row['begun_mib']:.0f} before opening it; {row['mapped_mib']:.0f} of files); "
        f"read at {BATCH / row['read_s']:,.0f} examples/s, trained here at {BATCH / row['step_s']:,.0f}: reading is "
        f"{row['share']:.1%} of a step. A GPU step of {gpu_step_ms:g} ms, supposed, takes "
        f"{1e3 * BATCH / gpu_step_ms:,.0f} examples/s: reading {reading:.2f} ms is {reading / gpu_step_ms:.0%} of it"
    )


if __name__ == "__main__":
    main()
