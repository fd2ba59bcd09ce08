"""Checkpoints of a training loop: safetensors and JSON, written atomically, resumed exactly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write ``tensors`` as safetensors: complete or not at all, and the same bytes for the same values."""
    partial = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What ``save_tensors`` wrote, on the CPU."""
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def save(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Everything a run needs to go on as if it had not stopped: weights and scales, moments, generators, counters.

    ``progress`` is JSON and travels in the file's header, so that the two can never disagree.
    """
    tensors = {f"model/{k}": v for k, v in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    save_tensors(tensors, path, {"progress": json.dumps(progress)})


def load(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what ``save`` wrote, in place; returns its ``progress``."""
    tensors = load_tensors(path)
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
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    progress: dict[str, Any] = json.loads(header["__metadata__"]["progress"])
    return progress
