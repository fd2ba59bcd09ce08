"""Claims about a head that is trained on a frozen backbone's states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from edgekd.distill import evaluate, head
from edgekd.distill.data import tokenise
from edgekd.errors import TargetError

CPU = torch.device("cpu")


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = dict(
        vocab_size=tiny.wordpiece().get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    return LlamaForSequenceClassification(LlamaConfig(**(options | changes))).eval()


def tokens() -> dict[str, Any]:
    data = tiny.data(90)
    return {"train": tiny.tokens(data.train), "validation": tiny.tokens(data.validation)}


def fit(model: Any, out: Path, progress: Any = None) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return head.fit(model, tokens(), out=out, device=CPU, bf16=False, progress=progress or tiny.Bars())


def slope(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, penalty: float) -> tuple[Any, Any]:
    """The gradient of the penalized loss, by its formula."""
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(len(weight))[y]
    return p.T @ x / len(x) + penalty * weight * x.var(0, ddof=1), p.mean(0)


@pytest.mark.parametrize("biased", [False, True])
def test_the_head_is_at_the_minimum_of_the_penalized_loss_whatever_the_scale_of_a_channel(biased: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)) * [1e-3, 1, 1, 1e3, 1, 1] + [0, 5, -1, 1e3, 0, 0]
    x[:, 5] = 2.0  # says nothing, and has no scale
    y = rng.integers(0, 3, 120) * (x[:, 1] > 5)
    found = head.logistic(torch.tensor(x), torch.tensor(y), 0.01, torch.zeros(3, 6), torch.zeros(3) if biased else None)
    assert (found[1] is None) == (not biased)
    weight, bias = (part.numpy() if part is not None else np.zeros(3) for part in found)
    by_weight, by_bias = slope(x, y, weight, bias, 0.01)
    spread = np.where(x.std(0) > 0, x.std(0, ddof=1), 1)
    scaled = by_weight / spread
    scaled[:, 5] += 0.01 * weight[:, 5] * (not biased)  # the constant channel is penalized as if it spread by one
    assert np.abs(scaled).max() < 1e-4
    assert not biased or np.abs(by_bias).max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_only_the_head_changes_and_it_answers_through_the_whole_model_as_in_training(kind: str, tmp_path: Path) -> None:
    model = llama() if kind == "llama" else tiny.bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    summary = fit(model, tmp_path)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == ({"score.weight"} if kind == "llama" else {"classifier.weight", "classifier.bias"})
    part = tokens()["validation"]
    logits = torch.from_numpy(evaluate.logits(model, part))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(part.labels)).item()
    assert loss == pytest.approx(summary["best"]["loss"], rel=1e-4)
    assert evaluate.compare(logits.numpy(), part.labels, None)["score"] == summary["best"]["score"] > 0.9
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert summary["best"] == min(rows, key=lambda row: row["loss"]) and len(rows) == len(head.PENALTIES)


def test_a_killed_pass_over_the_examples_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head.labels, "BLOCK", 16)
    whole, killed = llama(), llama()
    fit(whole, tmp_path / "whole")

    calls = 0
    forward = killed.model.forward

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return forward(*args, **options)

    killed.model.forward = dying
    with pytest.raises(KeyboardInterrupt):
        fit(killed, tmp_path / "killed")
    killed = llama()  # as the stage would load it
    bars = tiny.Bars()
    fit(killed, tmp_path / "killed", bars)
    assert bars.done["teacher: states-train"] == bars.total["teacher: states-train"] == 6 - 2  # the first call looks
    assert torch.equal(killed.score.weight, whole.score.weight)
    head.clean(tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["history.jsonl"]


def test_a_head_of_several_layers_is_refused() -> None:
    model = RobertaForSequenceClassification(RobertaConfig(**{**vars(tiny.bert().config), "pad_token_id": 1}))
    with pytest.raises(TargetError, match=r"classifier\.dense, classifier\.out_proj: choose 'all' or 'lora'"):
        head.path(model)
    assert head.path(tiny.bert()) == "classifier"


def test_a_decoder_answers_alike_however_much_padding_follows_also_where_a_text_says_padding() -> None:
    texts = ["oil price", "wheat [PAD] corn [PAD] [PAD]", "", "[PAD]"]
    backend = tiny.wordpiece()
    backend.post_processor = None  # nothing stands at the end that is sure to be no padding
    part = tokenise(backend, [*texts, "oil " * 12], np.zeros(len(texts) + 1, np.int64), 16, 0)
    assert part.ids.tolist().count(0) > 4
    model = llama()
    together, alone = (evaluate.logits(model, part, batch_size=size) for size in (len(part), 1))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together - together[0]).max(1)[1:].min() > 1e-3
