"""Guest instructions per inference on arm64, with and without the dot product, held against the recorded ones.

    python benchmarks/instructions.py            # compares with benchmarks/results/instructions.json
    python benchmarks/instructions.py --write    # records what is found now

A student of the demonstration's shape with random weights (an instruction does not depend on them) is exported in fp32
and in each static scheme, and run by onnxruntime under ``qemu-aarch64``, where a TCG plugin (``instructions.c``, built
here with gcc) counts. One thread, one example, the fewest of three calls. The counts do not depend on the machine or
its load, and hardly on where memory happens to lie; they are instructions, never milliseconds. Exits with 1 if a
count is more than ``TOLERANCE`` above the recorded one, or was recorded under another onnxruntime or QEMU. Needs what
``edgekd verify --isa arm64 --install`` fetches.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from instructions_child import CALLS
from transformers import BertConfig, BertForSequenceClassification

from edgekd import spec
from edgekd.distill.data import Tokens
from edgekd.isa import arm64, cpus
from edgekd.onnxio.export import export_float, export_quantized
from edgekd.quant.calibrate import calibrate
from edgekd.stages.quantize import prepare
from edgekd.store import write_json

HERE = Path(__file__).parent
RECORDED = HERE / "results" / "instructions.json"
LENGTHS = (16, 64, 128)
SCHEMES = ("fp32", "u8s8_static", "s8s8_static")
KEEP_FLOAT = ("*.attention.self.MatMul*", "classifier")
SHAPE = {"vocab_size": 6000, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
SHAPE |= {"intermediate_size": 512, "max_position_embeddings": 128, "num_labels": 8}
TOLERANCE = 0.01

Counts = dict[str, dict[str, dict[str, int]]]  # CPU -> scheme -> tokens -> instructions


def main() -> int:
    """Count, print, compare; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record the counts")
    write = parser.parse_args().write
    cpus.require("arm64")
    made: dict[str, Any] = {"unit": "guest instructions per inference", "model": SHAPE}
    made |= {"onnxruntime": arm64.onnxruntime_version(), "qemu": cpus.emulator_version("qemu-aarch64")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O2", "-o", folder / "count.so", HERE / "instructions.c"], check=True
        )
        paths = {scheme: folder / f"{scheme}.onnx" for scheme in SCHEMES}
        for scheme, path in paths.items():
            export(scheme, path)
        counts: Counts = {cpu.model: count(cpu, paths, folder / "count.so") for cpu in cpus.ISAS["arm64"]}
    show(counts)
    if write:
        write_json(RECORDED, made | {"counts": counts})
        print(f"recorded in {RECORDED}")
        return 0
    return compare(made, counts)


def export(scheme: str, path: Path) -> None:
    """Write the student with random weights, calibrated on random tokens."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SHAPE, attn_implementation="eager")).eval()
    if scheme == "fp32":
        export_float(model, path, opset=17)
        return
    quant = spec.Quant(scheme=scheme, calibration="-", keep_float=KEEP_FLOAT)
    rows = np.arange(16)
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], 16 * 32).astype(np.int32)
    tokens = Tokens(ids, np.zeros_like(ids), np.arange(17) * 32, np.zeros(16, np.int64), 0)
    calibrate(prepare(model, quant), quant, tokens, rows)
    export_quantized(model, path, opset=17, keep_float=KEEP_FLOAT)


def count(cpu: cpus.Cpu, models: dict[str, Path], plugin: Path) -> dict[str, dict[str, int]]:
    """Scheme -> tokens -> the fewest instructions of a call."""
    with tempfile.TemporaryDirectory() as prefix:
        (emulator, *rest), env = cpus.command(cpu, Path(prefix))
        lengths = ",".join(map(str, LENGTHS))
        child = [str(HERE / "instructions_child.py"), lengths, *map(str, models.values())]
        done = subprocess.run(
            [emulator, "-plugin", str(plugin), *rest, *child], env=env, capture_output=True, text=True, check=False
        )
    marks = [int(total) for total in re.findall(r"^mark \d+ (\d+)$", done.stderr, re.MULTILINE)]
    calls = len(models) * len(LENGTHS) * CALLS
    if done.returncode or len(marks) != 2 * calls:
        raise SystemExit(f"no count on {cpu.model} (QEMU 4.2 to 8.2 takes this plugin): {done.stderr[-500:]}")
    fewest = np.diff(np.reshape(marks, (len(models), len(LENGTHS), CALLS, 2)))[..., 0].min(axis=2)
    return {
        scheme: dict(zip(map(str, LENGTHS), row, strict=True))
        for scheme, row in zip(models, fewest.tolist(), strict=True)
    }


def show(counts: Counts) -> None:
    """One line a CPU and scheme, in millions."""
    print("millions of guest instructions per inference (not a time)")
    print(f"{'CPU':12} {'scheme':12} " + " ".join(f"{n:>4} tokens" for n in LENGTHS) + "   of fp32")
    for cpu, schemes in counts.items():
        for scheme, found in schemes.items():
            cells = " ".join(f"{found[str(n)] / 1e6:11.2f}" for n in LENGTHS)
            share = " ".join(f"{found[str(n)] / schemes['fp32'][str(n)]:.2f}" for n in LENGTHS)
            print(f"{cpu:12} {scheme:12} {cells}   {share}")


def compare(made: dict[str, Any], counts: Counts) -> int:
    """0 if no count rose."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    if other := [f"{key} {recorded[key]}, now {value}" for key, value in made.items() if recorded[key] != value]:
        print(f"not comparable with {RECORDED}: {'; '.join(other)}. Record anew with --write, and say why in LOG.md")
        return 1
    worst, place = max(
        (found[n] / recorded["counts"][cpu][scheme][n] - 1, f"{cpu}, {scheme}, {n} tokens")
        for cpu, schemes in counts.items()
        for scheme, found in schemes.items()
        for n in found
    )
    print(f"largest change against {RECORDED.name}: {worst:+.3%} ({place}), at most {TOLERANCE:+.0%} allowed")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
