"""Claims about loading teachers: encoders, decoders, pickles, and labels that do not agree."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgekd.errors import AssetError, DataError
from edgekd.models import loading


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    loading.save_model(tiny.bert(), tiny.fast(tiny.wordpiece()), tmp_path / "m")
    return tmp_path / "m"


def test_a_saved_classifier_comes_back_with_its_labels_and_logits(saved: Path) -> None:
    model = loading.load_classifier(saved, tiny.LABELS, finetuned=True, attention="eager").eval()
    ids = torch.tensor([[2, 40, 50, 3]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, tiny.bert()(input_ids=ids).logits)
    assert model.config.id2label == dict(enumerate(tiny.LABELS))
    assert model.config._attn_implementation == "eager"


def test_saving_the_same_model_twice_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    loading.save_model(tiny.bert(), tiny.fast(tiny.wordpiece()), tmp_path / "again")
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("a", "b"), "knows 3 labels and the data has 2"), (("food", "finance", "energy"), "not the data's")],
)
def test_labels_that_differ_from_the_teachers_are_refused(saved: Path, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        loading.load_classifier(saved, labels, finetuned=True)


def test_a_backbone_gets_a_fresh_head_of_the_datas_size(saved: Path) -> None:
    tiny.bert().bert.save_pretrained(saved)
    model = loading.load_classifier(saved, ("x", "y"), finetuned=False)
    assert model.classifier.weight.shape == (2, 32)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, tiny.bert().bert.embeddings.word_embeddings.weight)


def test_a_decoder_becomes_a_classifier_that_ignores_padding(tmp_path: Path) -> None:
    tokenizer = tiny.fast(tiny.wordpiece())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = loading.load_classifier(tmp_path, tiny.LABELS, finetuned=False).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    ids, padded = torch.tensor([[2, 40, 50, 3]]), torch.tensor([[2, 40, 50, 3, 0, 0]])
    with torch.no_grad():
        bare = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(input_ids=padded, attention_mask=(padded > 0).long()).logits, bare)
    assert bare.shape == (1, 3)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Bomb()}))
    with pytest.raises(AssetError, match="Convert it to safetensors"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=False)
    assert not (saved / "exploded").exists()


def test_a_pickle_of_plain_tensors_is_read(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(tiny.bert().state_dict(), saved / "pytorch_model.bin")
    model = loading.load_classifier(saved, tiny.LABELS, finetuned=True)
    assert torch.equal(model.classifier.weight, tiny.bert().classifier.weight)


def test_a_folder_without_weights_or_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"expected \*\.safetensors"):
        loading.load_classifier(tmp_path, tiny.LABELS, finetuned=False)
    with pytest.raises(AssetError, match="cannot load a tokenizer"):
        loading.load_tokenizer(tmp_path)


def test_truncated_weights_are_an_asset_error(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AssetError, match="cannot load a sequence classifier"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=True)
