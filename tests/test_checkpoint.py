"""Claims about sealed files: whatever happens to one, it is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekd.distill import checkpoint
from edgekd.errors import StoreError

TENSORS = {"a": torch.arange(3.0), "b/c": torch.tensor([[1, -1]]), "bf16": torch.ones(2, dtype=torch.bfloat16)}
TENSORS |= {"scalar": torch.tensor(7.0), "bytes": torch.tensor([1, 255], dtype=torch.uint8), "none": torch.empty(0, 2)}
PROGRESS = {"step": 3, "best": {"kl": 0.1 + 0.2}, "name": "ü"}


def test_what_was_sealed_comes_back_and_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    checkpoint.seal(TENSORS, tmp_path / "a", PROGRESS)
    checkpoint.seal(dict(reversed(TENSORS.items())), tmp_path / "b", PROGRESS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tensors, progress = checkpoint.unseal(tmp_path / "a")
    assert progress == PROGRESS and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_flipped_bit_in_any_byte_and_any_missing_end_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.seal({"a": torch.arange(3.0)}, path, {"step": 3})
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(len(whole))]
    for place in range(len(whole)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(StoreError, match=r"a\.safetensors (cannot be read|has changed)"):
            checkpoint.unseal(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be read .*FileNotFoundError"):
        checkpoint.unseal(tmp_path / "a.safetensors")
