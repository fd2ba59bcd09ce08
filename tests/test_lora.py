"""Claims about low-rank corrections of a backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from edgekd import spec
from edgekd.distill import loop
from edgekd.distill.learner import Learner
from edgekd.errors import TargetError
from edgekd.models import lora
from edgekd.progress import Progress

IDS = torch.tensor([[2, 40, 50, 3]])


def answers(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_fresh_correction_changes_nothing_and_a_merged_one_is_an_ordinary_model_of_the_same_answers() -> None:
    model, plain = tiny.bert(), tiny.bert()
    lora.attach(model, rank=4, alpha=8)
    assert torch.equal(answers(model), answers(plain))
    layer = model.bert.encoder.layer[1].output.dense
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, lora.LowRank):
                module.up_OR.normal_()
    expected = layer.linear.weight.double() + 8 / 4 * layer.up_OR.double() @ layer.down_RI.double()
    said = answers(model)
    lora.merge(model)
    torch.testing.assert_close(model.bert.encoder.layer[1].output.dense.weight.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answers(model), said, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(said, answers(plain), atol=1e-2)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_loop_trains_the_corrections_and_the_head_alone(tmp_path: Any) -> None:
    model, plain = tiny.bert(), tiny.bert()
    lora.attach(model, rank=4, alpha=8)
    task = loop.Task("t", Learner(model, (spec.CE(),)), tiny.tokens(tiny.split(48, 1)), None, lambda: {"score": 0.0})
    options = spec.Optimizer(learning_rate=1e-2, batch_size=16)
    loop.fit(task, epochs=1, options=options, seed=0, out=tmp_path, progress=Progress(quiet=True))
    lora.merge(model)
    before = plain.state_dict()
    for name, value in model.state_dict().items():
        change = value - before[name]
        if name.startswith("classifier."):
            assert change.abs().max() > 0
        elif name.endswith("weight") and "dense" in name:
            singular = np.linalg.svd(change.double().numpy(), compute_uv=False)
            assert singular[3] > 1e-6 > singular[4]  # of rank four
        elif not any(part in name for part in ("query", "key", "value")) or name.endswith("bias"):
            assert change.abs().max() == 0, name


def test_a_backbone_without_linear_layers_is_refused() -> None:
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(TargetError, match="GPT2Model has none: choose 'all' or 'head'"):
        lora.attach(model, 4, 8)
