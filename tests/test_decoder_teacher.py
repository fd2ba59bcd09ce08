"""Claims about a decoder that teaches an encoder with another tokenizer, through the whole line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_target
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from edgekd import catalog, machine, pipeline, plan, spec
from edgekd.distill import evaluate
from edgekd.distill.data import tokenise
from edgekd.models import loading
from edgekd.onnxio import dynamic, export
from edgekd.onnxio.audit import session
from edgekd.onnxio.files import read
from edgekd.progress import Progress
from edgekd.store import read_json


def decoder(folder: Path) -> None:
    """A random Llama without a head, with a byte-level tokenizer that has no padding token of its own."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(tiny.split(120, 5).texts, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=330, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model, tokenizer = LlamaModel(config), PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    loading.save_model(model, tokenizer, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder")
    decoder(path / "decoder")
    return path


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """For products this small, preparing each shape for bfloat16 takes longer than everything else."""
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: False)


def loaded(folder: Path) -> Any:
    return loading.load_classifier(folder, tiny.LABELS, finetuned=True, attention="eager").eval()


def target(folder: Path, **finetune: Any) -> tuple[spec.Target, Path]:
    """The tiny target, its teacher a decoder and its old teacher the backbone that the student is cut from."""
    path = tiny_target.write(folder, epochs=4)
    base = catalog.load(str(path))
    losses = (spec.KL(), spec.HiddenMSE(0.01))
    fast = spec.Optimizer(learning_rate=5e-3, batch_size=8)
    changed = dataclasses.replace(
        base,
        task=dataclasses.replace(base.task, transfer_words=None, limit=80),
        distill=spec.Distill(losses=losses, epochs=30, optimizer=fast),
        quant=dataclasses.replace(base.quant, epochs=1),
        teacher=spec.Teacher(source=f"dir:{folder}/decoder", finetune=spec.Finetune(epochs=4, **finetune)),
        student=spec.Student(source=f"dir:{folder}/teacher", layers=2, vocabulary=70, dropout=0.0),
    )
    return changed, path


def test_a_decoder_whose_head_was_trained_teaches_an_encoder_cut_from_another_backbone(folder: Path) -> None:
    wanted, path = target(folder, train="head")
    done = pipeline.run(wanted, folder=folder / "runs", beside=path, to="quantize", progress=Progress(quiet=True))
    stages = {name: Path(entry["folder"]) for name, entry in done["stages"].items()}
    assert not list(stages["teacher"].glob("states-*"))
    assert read_json(stages["teacher"] / "scores.json")["validation"]["score"] > 0.6
    student, tokenizer = (load(stages["distill"] / "model") for load in (loaded, loading.load_tokenizer))
    assert student.config.model_type == "bert" and student.config.num_hidden_layers == 2
    assert tokenizer.cls_token == "[CLS]" and len(tokenizer) == student.config.vocab_size <= 70
    scores = read_json(stages["quantize"] / "scores.json")
    assert scores["qad"]["score"] > 0.5 and scores["training"]["steps"] > 0

    model = loaded(stages["teacher"] / "model")  # as the export stage does with it
    part = tiny.split(12, 9)
    fast = loading.load_tokenizer(stages["teacher"] / "model")
    rows = tokenise(fast.backend_tokenizer, part.texts, part.labels, 16, fast.pad_token_id)
    export.export_float(model, folder / "t.onnx", opset=17)
    dynamic.quantize_dynamic(folder / "t.onnx", folder / "d.onnx")
    ids, mask, _ = rows.gather(np.arange(len(rows)))
    feeds, expected = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}, evaluate.logits(model, rows)
    exact, rough = (session(read(folder / name)).run(None, feeds)[0] for name in ("t.onnx", "d.onnx"))
    np.testing.assert_allclose(exact, expected, atol=1e-3)
    assert np.abs(rough - expected).max() < 0.2 * np.abs(expected).max()


def test_a_decoder_is_fine_tuned_by_low_rank_corrections_and_saved_as_an_ordinary_classifier(folder: Path) -> None:
    wanted, path = target(folder, train="lora", rank=4, optimizer=spec.Optimizer(learning_rate=1e-2, batch_size=16))
    done = pipeline.run(wanted, folder=folder / "runs", beside=path, to="teacher", progress=Progress(quiet=True))
    stage = Path(done["stages"]["teacher"]["folder"])
    model, found = AutoModelForSequenceClassification.from_pretrained(stage / "model", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and model.score.weight.shape == (3, 48)
    scores = read_json(stage / "scores.json")
    assert scores["validation"]["score"] > 0.6 and scores["training"]["train"] == "lora"
    names = [name for name, _ in model.named_parameters()]
    assert scores["parameters"] == sum(model.get_parameter(name).numel() for name in names)


def test_a_changed_backbone_makes_another_student_and_leaves_the_plan_to_say_its_size(folder: Path) -> None:
    wanted, path = target(folder, train="head")
    found = plan.plan(wanted, folder / "elsewhere", beside=path)
    assert found["teacher"]["layers"] == 3 and found["student"]["layers"] == 2 and found["student"]["hidden"] == 32

    def keys() -> dict[str, str]:
        return {step.name: step.stage.key for step in pipeline.steps(wanted, folder / "elsewhere", beside=path)}

    before = keys()
    (folder / "teacher" / "note.txt").write_text("other weights would do the same")
    after = keys()
    (folder / "teacher" / "note.txt").unlink()
    assert all(before[name] != after[name] for name in before)
