"""Checkpoints of a training loop: safetensors that carry their own SHA-256, written atomically, resumed exactly."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgekd.errors import StoreError

SEAL = "sha256 progress"  # one entry: safetensors writes several in any order, and equal values give equal bytes


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write ``tensors`` as safetensors: complete or not at all, and the same bytes for the same values."""
    partial = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def seal(tensors: dict[str, Tensor], path: Path, progress: Any = None) -> None:
    """``save_tensors`` with ``progress`` (JSON) and the SHA-256 of both in the same file: no kill can part them."""
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    text = json.dumps(progress)
    save_tensors(tensors, path, {SEAL: f"{_sha256(tensors, text)} {text}"})


def unseal(path: Path) -> tuple[dict[str, Tensor], Any]:
    """What ``seal`` wrote, on the CPU, and its ``progress``; ``StoreError`` if it is missing, truncated or altered."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            expected, _, text = (file.metadata() or {})[SEAL].partition(" ")
    except (OSError, SafetensorError, KeyError) as error:
        raise StoreError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if _sha256(tensors, text) != expected:
        raise StoreError(f"{path} has changed since it was written (SHA-256)")
    return tensors, json.loads(text)


def _sha256(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Everything a run needs to go on as if it had not stopped: weights and scales, moments, generators, counters.

    ``progress`` is JSON and travels in the same file, so that the two can never disagree.
    """
    tensors = {f"model/{k}": v for k, v in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    seal(tensors, path, progress)


def restore(tensors: dict[str, Tensor], module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back in place what ``save`` wrote and ``unseal`` read."""
    module.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
