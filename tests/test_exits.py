"""Claims about early exits: their heads, the shallower classifiers that they are, and the line that ships one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_target
import torch
from safetensors.torch import load_file
from scipy.special import erf
from transformers import AutoConfig, AutoModelForSequenceClassification

from edgekd import catalog, pipeline, spec
from edgekd.distill import data, learner
from edgekd.distill.record import shape
from edgekd.errors import TargetError
from edgekd.models import exits
from edgekd.runtimes import ort_cpu
from edgekd.stages.quantize import prepare

COMMON = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
FAMILIES: dict[str, Any] = {
    "bert": (COMMON, "bert.pooler.dense", "classifier", np.tanh),
    "roberta": (COMMON, "classifier.dense", "classifier.out_proj", np.tanh),
    "electra": (
        COMMON | {"embedding_size": 16}, "classifier.dense", "classifier.out_proj",
        lambda x: x * (1 + erf(x / 2**0.5)) / 2,
    ),
    "distilbert": (
        dict(dim=32, n_layers=3, n_heads=2, hidden_dim=32), "pre_classifier", "classifier", lambda x: np.maximum(x, 0),
    ),
}  # fmt: skip
"""The configuration of each family, what its head is made of, and the function between."""


def family(kind: str) -> Any:
    torch.manual_seed(0)
    options = dict(vocab_size=64, pad_token_id=0, num_labels=3, initializer_range=0.5)
    config = AutoConfig.for_model(kind, **options | FAMILIES[kind][0])
    return AutoModelForSequenceClassification.from_config(config).eval()


def by_hand(kind: str, model: Any, layer: int, state: Any, inputs: Any) -> Any:
    """Logits in float64 from the model's hidden states after ``layer`` and the head in ``state``."""
    _, dense, out, between = FAMILIES[kind]
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    with torch.no_grad():
        first = model(**inputs, output_hidden_states=True).hidden_states[layer][:, 0].double().numpy()
    pooled = between(first @ weights[f"{dense}.weight"].T + weights[f"{dense}.bias"])
    return pooled @ weights[f"{out}.weight"].T + weights[f"{out}.bias"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_shallower_classifier_is_the_head_on_the_states_of_its_last_block(kind: str, tmp_path: Path) -> None:
    model = family(kind)
    head = exits.head(model)
    assert not [name for name in head.state_dict() if "layer." in name or "embedding" in name]
    found = exits.shallower(model, 2, head)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    expected = by_hand(kind, model, 2, head.state_dict(), inputs)
    assert np.abs(expected - by_hand(kind, model, 2, model.state_dict(), inputs)).max() > 0.1  # a fresh head
    states = model(**inputs, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(
        exits.answer(head.eval(), states).detach().double().numpy(), expected, rtol=1e-4, atol=1e-5
    )
    found.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for classifier in (found, loaded):
        np.testing.assert_allclose(classifier(**inputs).logits.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    blocks = exits.BLOCKS[kind]
    assert len(loaded.base_model.get_submodule(blocks)) == 2
    assert found.base_model.get_submodule(blocks)[1] is model.base_model.get_submodule(blocks)[1]


@pytest.mark.parametrize(("at", "kind"), [((3,), "bert"), ((1, 4), "bert"), ((1,), "albert")])
def test_exits_that_a_student_cannot_have_are_refused_by_name(at: tuple[int, ...], kind: str) -> None:
    model = tiny.bert(num_hidden_layers=3)
    model.config.model_type = kind
    reason = r"the student has 3 blocks" if kind == "bert" else r"knows bert, .*, distilbert students, not 'albert'"
    with pytest.raises(TargetError, match=reason):
        learner.Learner(model, (spec.KL(), spec.Exits(at=at)), shape(model))


def test_a_quantized_exit_is_quantized_in_the_student_too_and_its_deeper_layers_learn_nothing_from_it() -> None:
    whole = tiny.bert(num_hidden_layers=3)
    shipped = exits.shallower(whole, 2)
    prepare(shipped, spec.Quant(scheme="u8s8_dynamic", keep_float=("*.attention.self.MatMul*",)))
    exits.share(whole, shipped)
    taught = learner.Learner(whole, (spec.Exits(at=(1, 2)),), shape(whole), shipped=shipped)
    kinds = [type(whole.bert.encoder.layer[i].intermediate.dense).__name__ for i in range(3)]
    assert kinds == ["QuantLinear", "QuantLinear", "Linear"]
    assert [name for name in taught.own.state_dict() if name.startswith("0.heads.2")] == []  # it is the shipped one's
    tokens = tiny.tokens(tiny.split(8, 0))
    (batch,) = data.micro_batches(tokens, np.arange(8), None)
    taught(batch).backward()
    learned = [*shipped.parameters(), *taught.own.parameters()]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned if p.requires_grad)
    assert all(p.grad is None for p in [*whole.bert.encoder.layer[2].parameters(), *whole.classifier.parameters()])


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The line of a target that ships an exit, as far as its ONNX files."""
    folder = tmp_path_factory.mktemp("exits")
    path = tiny_target.write(folder, epochs=1)
    base = catalog.load(str(path))
    losses = (spec.KL(temperature=2.0), spec.HiddenMSE(0.1), spec.Exits(at=(1, 2)))
    taught = dataclasses.replace(base.distill, losses=losses, exit=1)
    target = dataclasses.replace(base, student=dataclasses.replace(base.student, layers=3), distill=taught)
    done = pipeline.run(target, folder=folder / "runs", beside=path, to="export")["stages"]
    return {name: Path(entry["folder"]) for name, entry in done.items()}


def loaded(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def test_every_exit_is_scored_and_left_as_a_classifier(stages: dict[str, Path]) -> None:
    scores = json.loads((stages["distill"] / "scores.json").read_text())
    assert scores["exits"]["1"] == scores["validation"] and {*scores["exits"]} == {"1", "2", "3"}
    layers = {name: loaded(stages["distill"] / name).config.num_hidden_layers for name in ("model", "exit-2", "whole")}
    assert layers == {"model": 1, "exit-2": 2, "whole": 3}
    student = json.loads((stages["distill"] / "student.json").read_text())
    assert student["layers"] == 1 and len(student["kept_layers"]) == 1
    assert student["parameters"] == sum(p.numel() for p in loaded(stages["distill"] / "model").parameters())


def test_an_exit_goes_through_quantization_and_export_and_answers_as_it_did_in_torch(stages: dict[str, Path]) -> None:
    whole, model = loaded(stages["distill"] / "whole"), loaded(stages["distill"] / "model")
    feeds = np.load(stages["export"] / "inputs" / "student.npz")
    onnx = ort_cpu.load(stages["export"] / "student_fp32" / "model.onnx", 1)
    for first, last in zip(feeds["offsets"][:20], feeds["offsets"][1:21], strict=True):
        ids = feeds["ids"][None, first:last]
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        inputs = {name: torch.from_numpy(given[name]) for name in ("input_ids", "attention_mask")}
        expected = by_hand("bert", whole, 1, model.state_dict(), inputs)
        np.testing.assert_allclose(onnx.run(given), expected, rtol=1e-3, atol=1e-5)
    assert json.loads((stages["quantize"] / "scores.json").read_text())["training"]["steps"] > 0
    shipped = load_file(stages["quantize"] / "qad.safetensors")
    assert {name.split(".")[3] for name in shipped if ".layer." in name} == {"0"}
    pairs = json.loads((stages["export"] / "parity.json").read_text())["student_qad"]["pairs"]
    assert pairs and all(row["agreement"] > 0.9 for row in pairs.values())
