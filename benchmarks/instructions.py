"""Guest instructions per inference where the dot product or VNNI is, and where not, held against the recorded ones.

    python benchmarks/instructions.py                              # compares with benchmarks/results/instructions.json
    python benchmarks/instructions.py --write                      # records what is found now
    python benchmarks/instructions.py --export runs/store/export-… # a run's own student, nothing compared

Students with random weights (an instruction does not depend on them), of the demonstration's shape and of its
teacher's, are exported in fp32 and in static schemes, and run by onnxruntime under QEMU's user mode, where a TCG plugin
(``instructions.c``, built here with gcc) counts. One thread, one example, the fewest of three calls. The counts do not
depend on the machine or its load, and hardly on where memory happens to lie; they are instructions, never
milliseconds. What int8 takes of fp32 on a Cortex-A76 is held against ``ASKED``. Exits with 1 if a count is more than
``TOLERANCE`` above the recorded one, or was recorded under another onnxruntime or QEMU. Needs what ``edgekd verify
--isa arm64 --install`` fetches.
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
SCHEMES = {"arm64": ("fp32", "u8s8_static", "s8s8_static"), "avx2": ("fp32", "u8s7_static")}
KEEP_FLOAT = ("*.attention.self.MatMul*", "classifier")
COMMON = {"vocab_size": 6000, "max_position_embeddings": 128, "num_labels": 8}
SHAPES = {
    "4x128": {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512},
    "6x384": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
}
LENGTHS = {"4x128": (16, 64, 128), "6x384": (64,)}
TOLERANCE = 0.01
ASKED = 0.45

Counts = dict[str, dict[str, dict[str, int]]]  # CPU -> scheme -> tokens -> instructions


def main() -> int:
    """Count, print, compare; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record the counts")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="the folder of a run's export stage")
    given = parser.parse_args()
    cpus.require("arm64")
    with tempfile.TemporaryDirectory() as name:
        plugin = Path(name) / "count.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", plugin, HERE / "instructions.c"], check=True)
        if given.export:
            paths = {kind: given.export / f"student_{kind}" / "model.onnx" for kind in ("fp32", "qad")}
            show({cpu.model: count(cpu, paths, LENGTHS["4x128"], plugin) for cpu in cpus.ISAS["arm64"]})
            return 0
        cpus.require("avx2")
        counts = {shape: count_shape(shape, Path(name), plugin) for shape in SHAPES}
    made: dict[str, Any] = {"unit": "guest instructions per inference", "models": SHAPES, "common": COMMON}
    made |= {"onnxruntime": arm64.onnxruntime_version(), "qemu": cpus.emulator_version("qemu-aarch64")}
    if given.write:
        write_json(RECORDED, made | {"counts": counts})
        print(f"recorded in {RECORDED}")
        return 0
    return compare(made, counts)


def count_shape(shape: str, folder: Path, plugin: Path) -> Counts:
    """Export a shape in every scheme, count and print."""
    counts: Counts = {}
    for isa, schemes in SCHEMES.items():
        paths = {scheme: folder / f"{shape}-{scheme}.onnx" for scheme in schemes}
        for scheme, path in paths.items():
            if not path.exists():
                export(shape, scheme, path)
        counts |= {cpu.model: count(cpu, paths, LENGTHS[shape], plugin) for cpu in cpus.ISAS[isa]}
    print(f"\n{shape}")
    show(counts)
    return counts


def export(shape: str, scheme: str, path: Path) -> None:
    """Write the student with random weights, calibrated on random tokens."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**COMMON, **SHAPES[shape], attn_implementation="eager")).eval()
    if scheme == "fp32":
        export_float(model, path, opset=17)
        return
    quant = spec.Quant(scheme=scheme, calibration="-", keep_float=KEEP_FLOAT)
    rows = np.arange(16)
    ids = np.random.default_rng(0).integers(0, COMMON["vocab_size"], 16 * 32).astype(np.int32)
    tokens = Tokens(ids, np.zeros_like(ids), np.arange(17) * 32, np.zeros(16, np.int64), 0)
    calibrate(prepare(model, quant), quant, tokens, rows)
    export_quantized(model, path, opset=17, keep_float=KEEP_FLOAT)


def count(cpu: cpus.Cpu, models: dict[str, Path], lengths: tuple[int, ...], plugin: Path) -> dict[str, dict[str, int]]:
    """Scheme -> tokens -> the fewest instructions of a call."""
    with tempfile.TemporaryDirectory() as prefix:
        (emulator, *rest), env = cpus.command(cpu, Path(prefix))
        child = [str(HERE / "instructions_child.py"), ",".join(map(str, lengths)), *map(str, models.values())]
        done = subprocess.run(
            [emulator, "-plugin", str(plugin), *rest, *child], env=env, capture_output=True, text=True, check=False
        )
    marks = [int(total) for total in re.findall(r"^mark \d+ (\d+)$", done.stderr, re.MULTILINE)]
    calls = len(models) * len(lengths) * CALLS
    if done.returncode or len(marks) != 2 * calls:
        raise SystemExit(f"no count on {cpu.model} (QEMU 4.2 to 8.2 takes this plugin): {done.stderr[-500:]}")
    fewest = np.diff(np.reshape(marks, (len(models), len(lengths), CALLS, 2)))[..., 0].min(axis=2)
    return {
        scheme: dict(zip(map(str, lengths), row, strict=True))
        for scheme, row in zip(models, fewest.tolist(), strict=True)
    }


def show(counts: Counts) -> None:
    """One line a CPU and scheme, in millions; and whether int8 takes as few of fp32's as is asked."""
    lengths = list(next(iter(next(iter(counts.values())).values())))
    print("millions of guest instructions per inference (not a time)")
    print(f"{'CPU':12} {'scheme':12} " + " ".join(f"{n:>4} tokens" for n in lengths) + "   of fp32")
    for cpu, schemes in counts.items():
        for scheme, found in schemes.items():
            cells = " ".join(f"{found[n] / 1e6:11.2f}" for n in lengths)
            shares = [found[n] / schemes["fp32"][n] for n in lengths]
            print(f"{cpu:12} {scheme:12} {cells}   {' '.join(f'{share:.2f}' for share in shares)}")
            if cpu == "cortex-a76" and scheme != "fp32":
                print(f"{'':26}at most {ASKED} of fp32 asked: {'met' if max(shares) <= ASKED else 'NOT MET'}")


def compare(made: dict[str, Any], counts: dict[str, Counts]) -> int:
    """0 if no count rose."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    if other := [
        f"{key} {recorded.get(key)}, now {value}" for key, value in made.items() if recorded.get(key) != value
    ]:
        print(f"not comparable with {RECORDED}: {'; '.join(other)}. Record anew with --write, and say why in LOG.md")
        return 1
    worst, place = max(
        (found[n] / recorded["counts"][shape][cpu][scheme][n] - 1, f"{shape}, {cpu}, {scheme}, {n} tokens")
        for shape, found_there in counts.items()
        for cpu, schemes in found_there.items()
        for scheme, found in schemes.items()
        for n in found
    )
    print(f"largest change against {RECORDED.name}: {worst:+.3%} ({place}), at most {TOLERANCE:+.0%} allowed")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
