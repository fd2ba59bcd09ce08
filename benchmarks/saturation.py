"""A model built to saturate: does ``u8s8`` depart from what was trained where there is no VNNI, and ``u8s7`` not?

    python benchmarks/saturation.py

One linear layer whose weights are all as large as they can be, read by activations over their whole range. x86 without
VNNI adds two neighbouring u8 x s8 products in 16 bits: 2 x 255 x 127 does not fit, 2 x 255 x 63 does. The layer goes
through edgekd's own quantizers, calibration and export; the reference is the fake-quantized torch module. Every
instruction set that can be run here is (see ``edgekd verify --isa``). Exits with 1 if one of the claims does not hold.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd import machine, spec
from edgekd.distill.data import Tokens
from edgekd.errors import MissingDependencyError
from edgekd.isa import cpus
from edgekd.onnxio.export import export_quantized
from edgekd.quant.calibrate import calibrate
from edgekd.quant.replace import quantize

WORDS, WIDTH, CLASSES = 256, 512, 16
SCHEMES = ("u8s8_static", "u8s7_static")


class Saturating(nn.Module):
    """A word's vector, even over [0, 1], times weights that are +1 or -1, neighbours alike."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH, _weight=torch.rand(WORDS, WIDTH, generator=generator))
        signs = torch.randint(0, 2, (CLASSES, WIDTH // 2), generator=generator) * 2.0 - 1
        self.head = nn.Linear(WIDTH, CLASSES)
        self.head.weight = nn.Parameter(signs.repeat_interleave(2, dim=1))
        self.head.bias = nn.Parameter(-self.head.weight.detach().sum(1) / 2)  # no class is ahead from the start

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Logits (batch, classes) of the first token."""
        return SimpleNamespace(logits=self.head(self.words(input_ids[:, 0])))


def main() -> int:
    """Print the table; 1 if a claim fails."""
    ids = np.arange(WORDS)
    feeds = [{"input_ids": ids[i : i + 1, None]} for i in ids]
    print(f"{WORDS} examples, {CLASSES} classes; this machine: {machine.cpu_model()} ({machine.instruction_set()})")
    print(f"{'scheme':12}  {'instruction set':20}  {'labels as trained':18}  largest logit error / deviation")
    wrong: dict[tuple[str, str], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in SCHEMES:
            path = Path(folder) / f"{scheme}.onnx"
            trained = _export(scheme, path)
            for cpu in _cpus():
                found, _ = cpus.logits(cpu, path, feeds, {})
                same = int((found.argmax(1) == trained.argmax(1)).sum())
                error = np.abs(found - trained).max() / trained.std()
                name = f"{cpu.isa} ({cpu.model})" if cpu.model else f"{cpu.isa} (this CPU)"
                print(f"{scheme:12}  {name:20}  {f'{same} of {WORDS}':18}  {error:.2%}", flush=True)
                wrong[scheme, cpu.isa] = max(wrong.get((scheme, cpu.isa), 0), WORDS - same)
    held = all(count == 0 for (scheme, isa), count in wrong.items() if (scheme, isa) != ("u8s8_static", "avx2"))
    departs = wrong.get(("u8s8_static", "avx2"), 1) > 0
    print("holds: u8s8 departs on avx2 alone, u8s7 nowhere" if held and departs else "DOES NOT HOLD")
    return 0 if held and departs else 1


def _export(scheme: str, path: Path) -> np.ndarray:
    """Write the model quantized by ``scheme``; the fake-quantized logits of every word (words, classes)."""
    model = Saturating().eval()
    ids = torch.arange(WORDS)[:, None]
    quantize(model, scheme, ("words",), {"input_ids": ids[:1]})
    count = np.arange(WORDS + 1)
    tokens = Tokens(count[:-1].astype(np.int32), np.zeros(WORDS, np.int32), count, np.zeros(WORDS, np.int64), 0)
    calibrate(model, spec.Quant(scheme=scheme, calibration="-", method="minmax"), tokens, count[:-1])
    export_quantized(model, path, opset=17, keep_float=("words",))
    with torch.no_grad():
        return np.asarray(model(ids).logits)


def _cpus() -> list[cpus.Cpu]:
    """This CPU, then what can be emulated; says why the rest cannot."""
    found = [cpus.Cpu(machine.instruction_set() or "other")]
    for isa in ("avx2", "arm64"):
        try:
            cpus.require(isa)
            found += cpus.ISAS[isa]
        except MissingDependencyError as error:
            print(error, file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
