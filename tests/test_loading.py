"""Claims about loading teachers: encoders, decoders, GGUF, pickles, and what does not belong together."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from edgekd import spec
from edgekd.errors import AssetError, DataError
from edgekd.models import loading, student


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


def test_a_saved_tokenizer_has_what_transformers_4_and_transformers_js_read(saved: Path) -> None:
    assert json.loads((saved / "special_tokens_map.json").read_text())["pad_token"] == "[PAD]"
    assert json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a", "b"), "knows 3 labels and the data has 2"),
        (("food", "finance", "energy"), "not the data's.*task.labels"),
        (("food", "sport", "energy"), "Finetune"),
    ],
)
def test_labels_that_differ_from_the_teachers_are_refused(saved: Path, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        loading.load_classifier(saved, labels, finetuned=True)


def test_a_backbone_gets_a_fresh_head_of_the_datas_size(saved: Path) -> None:
    tiny.bert().bert.save_pretrained(saved)
    model = loading.load_classifier(saved, ("x", "y"), finetuned=False)
    assert model.classifier.weight.shape == (2, 32)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, tiny.bert().bert.embeddings.word_embeddings.weight)


def test_a_classifier_of_other_labels_gets_a_fresh_head_to_finetune(saved: Path) -> None:
    model = loading.load_classifier(saved, ("a", "b", "c", "d", "e"), finetuned=False)
    assert model.classifier.weight.shape == (5, 32) and model.config.num_labels == 5
    assert torch.equal(model.bert.pooler.dense.weight, tiny.bert().bert.pooler.dense.weight)


def test_a_backbone_is_no_teacher_as_it_comes_even_if_its_label_count_fits(saved: Path) -> None:
    tiny.bert().bert.save_pretrained(saved)
    assert json.loads((saved / "config.json").read_text())["id2label"]["2"] == tiny.LABELS[2]
    with pytest.raises(AssetError, match=r"no classification head .*Finetune"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=True)


def test_a_backbone_without_a_pooler_gets_one(saved: Path) -> None:
    BertModel(tiny.bert().config, add_pooling_layer=False).save_pretrained(saved)
    assert loading.load_classifier(saved, tiny.LABELS, finetuned=False).bert.pooler is not None


@pytest.mark.parametrize("finetuned", [False, True])
@pytest.mark.parametrize(("setting", "value"), [("intermediate_size", 40), ("num_hidden_layers", 5)])
def test_weights_of_another_configuration_are_refused(saved: Path, setting: str, value: int, finetuned: bool) -> None:
    config = json.loads((saved / "config.json").read_text()) | {setting: value}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssetError, match="not those of its config"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=finetuned)


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


def test_a_model_that_would_compile_itself_does_not(tmp_path: Path) -> None:
    config = ModernBertConfig(
        vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0,
        reference_compile=True,
    )  # fmt: skip
    ModernBertForSequenceClassification(config).save_pretrained(tmp_path / "modern")
    model = loading.load_classifier(tmp_path / "modern", ("a", "b"), finetuned=False)
    for config in (model.config, model.model.layers[0].config):
        assert getattr(config, "reference_compile", False) is False  # transformers 5 knows no such setting


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


def pickled(folder: Path) -> Path:
    """Turn the folder's weights into a pickle of plain tensors."""
    (folder / "model.safetensors").unlink()
    torch.save(tiny.bert().state_dict(), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_a_pickle_that_is_no_weights_file_is_not_looked_at(saved: Path) -> None:
    pickled(saved)
    (saved / "training_args.bin").write_bytes(pickle.dumps({"w": Bomb()}))
    assert loading.load_classifier(saved, tiny.LABELS, finetuned=True).num_labels == 3


def test_safetensors_of_another_name_are_no_cover_for_a_pickle(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "other.safetensors")
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Bomb()}))
    with pytest.raises(AssetError, match="Convert it to safetensors"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=True)


def test_the_shards_of_a_pickle_are_those_that_its_index_names(saved: Path) -> None:
    weights = pickled(saved).rename(saved / "pytorch_model-1.bin")
    (saved / "pytorch_model-old.bin").write_bytes(pickle.dumps({"w": Bomb()}))
    index = {"metadata": {}, "weight_map": dict.fromkeys(tiny.bert().state_dict(), weights.name)}
    (saved / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert loading.load_classifier(saved, tiny.LABELS, finetuned=True).num_labels == 3
    weights.unlink()
    with pytest.raises(AssetError, match=r"lacks the weight files pytorch_model-1\.bin"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=True)
    (saved / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(AssetError, match="cannot load the list of weight files"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=True)


@pytest.mark.parametrize("content", ["half", b"hello world", b"<!DOCTYPE html>", b"version https://git-lfs", b""])
def test_a_broken_pickle_is_called_broken_and_not_dangerous(saved: Path, content: Any) -> None:
    weights = pickled(saved)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(AssetError, match="truncated or holds no weights"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=True)


def test_a_folder_without_weights_or_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"expected model\.safetensors"):
        loading.load_classifier(tmp_path, tiny.LABELS, finetuned=False)
    with pytest.raises(AssetError, match="cannot load a tokenizer"):
        loading.load_tokenizer(tmp_path)


def test_truncated_weights_are_an_asset_error(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AssetError, match="cannot load a sequence classifier"):
        loading.load_classifier(saved, tiny.LABELS, finetuned=True)


# ----------------------------------------------------------------------------------------------------------- tokenizers


def bpe(prefix_space: bool = False) -> Any:
    """A byte-level tokenizer, as decoders have, without padding, unknown or special tokens but one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(tiny.split(120, 5).texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", add_prefix_space=prefix_space)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(saved: Path) -> None:
    tokenizer = tiny.fast(tiny.wordpiece())
    tokenizer.add_tokens(["<unk>"])
    tokenizer.save_pretrained(saved)
    with pytest.raises(AssetError, match=r"no embedding for .*'<unk>'"):
        loading.load_tokenizer(saved)


def test_end_of_text_or_the_unknown_token_serves_for_padding(tmp_path: Path) -> None:
    tiny.bert(vocab_size=400).config.save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    assert loading.load_tokenizer(tmp_path).pad_token == "<|endoftext|>"
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)  # transformers 5 writes none
    PreTrainedTokenizerFast(tokenizer_object=tiny.wordpiece(), unk_token="[UNK]").save_pretrained(tmp_path)
    assert loading.load_tokenizer(tmp_path).pad_token == "[UNK]"
    PreTrainedTokenizerFast(tokenizer_object=tiny.wordpiece()).save_pretrained(tmp_path)
    with pytest.raises(AssetError, match="no pad_token, eos_token or unk_token"):
        loading.load_tokenizer(tmp_path)


@pytest.mark.parametrize("prefix_space", [False, True])
def test_a_loaded_and_saved_tokenizer_encodes_as_the_original(saved: Path, prefix_space: bool) -> None:
    given = bpe(prefix_space)
    given.save_pretrained(saved)
    tiny.bert(vocab_size=400).config.save_pretrained(saved)
    found = loading.load_tokenizer(saved)
    found.save_pretrained(saved)
    for text in ("oil price<|endoftext|>", " oil", ""):
        ids = given.backend_tokenizer.encode(text).ids
        assert found.backend_tokenizer.encode(text).ids == ids
        assert AutoTokenizer.from_pretrained(saved)(text)["input_ids"] == ids


def gguf_folder(folder: Path) -> Any:
    """Write a Llama backbone as llama.cpp does, to ``m.gguf``; return the model. It has no ``<unk>`` and no head."""
    tokenizer = bpe()
    data = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    names = sorted(data["vocab"], key=data["vocab"].__getitem__)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-6,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(names))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name == "<|endoftext|>" else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in data["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    renamed = {
        "embed_tokens": "token_embd", "layers": "blk", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "norm.weight": "output_norm.weight",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:  # llama.cpp rotates neighbouring pairs, transformers the two halves
            tensor = tensor.unflatten(0, (heads, 2, 4)).transpose(1, 2).reshape(tensor.shape)
        for old, new in renamed.items():
            name = new if old == name else name.replace(f"{old}.", f"{new}.")
        writer.add_tensor(name, tensor.contiguous().numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return model


def test_a_gguf_backbone_has_the_weights_and_the_tokens_of_its_file(tmp_path: Path) -> None:
    expected = gguf_folder(tmp_path)
    model = loading.load_classifier(tmp_path, tiny.LABELS, finetuned=False, gguf_file="m.gguf").eval()
    tokenizer = loading.load_tokenizer(tmp_path, "m.gguf")
    ids = tokenizer("oil price", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == bpe()("oil price")["input_ids"] and model.score.weight.shape == (3, 32)
    with torch.no_grad():
        found = model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(found, expected(input_ids=ids).last_hidden_state)
    with pytest.raises(AssetError, match="no classification head"):
        loading.load_classifier(tmp_path, ("a", "b"), finetuned=True, gguf_file="m.gguf")


def test_no_text_leaves_the_vocabulary_of_a_gguf_teacher_or_its_student(tmp_path: Path) -> None:
    gguf_folder(tmp_path)
    teacher = loading.load_classifier(tmp_path, tiny.LABELS, finetuned=False, gguf_file="m.gguf")
    loading.save_model(teacher, loading.load_tokenizer(tmp_path, "m.gguf"), tmp_path / "teacher")
    config: dict[str, object] = {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 20}
    options = spec.Student(config=config, vocabulary=300)
    small, tokenizer, _ = student.build(options, teacher, tmp_path / "teacher", tiny.data(), 16, seed=1)
    loading.save_model(small, tokenizer, tmp_path / "student")
    for folder, size in ((tmp_path / "teacher", teacher.config.vocab_size), (tmp_path / "student", 300)):
        for found in (loading.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)):
            ids = found("oil <unk> price <s> </s> [PAD] <|endoftext|> \N{SNOWMAN}")["input_ids"]
            assert len(found) == size and max(ids) < size
