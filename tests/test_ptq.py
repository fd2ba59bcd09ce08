"""Claims about post-training quantization beyond ranges, each on a small model that needs it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from brevitas.graph.calibrate import bias_correction_mode, quantization_status_manager
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd import spec
from edgekd.distill.data import Tokens
from edgekd.errors import TrainingError
from edgekd.progress import Progress
from edgekd.quant import ptq, replace, rounding
from edgekd.quant.calibrate import batches, calibrate
from edgekd.quant.moments import moments
from edgekd.quant.rounding import learn_rounding
from edgekd.quant.search import search

WIDTH, LENGTH = 16, 8
EXAMPLE = {"input_ids": torch.arange(LENGTH).unsqueeze(0), "attention_mask": torch.ones(1, LENGTH, dtype=torch.long)}


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Block(nn.Module):
    """A transformer block whose norms come first: what they write is read by linears alone."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.times, self.words = times, nn.Embedding(70, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        x = self.words(input_ids)
        mask = (1 - attention_mask[:, None].to(x.dtype)) * -1e4
        for _ in range(self.times):
            y = self.first(x)
            weights = ((self.q(y) @ self.k(y).transpose(1, 2)) / WIDTH**0.5 + mask).softmax(-1)
            x = x + self.o(weights @ self.v(y))
            x = x + self.down(F.gelu(self.up(self.second(x))))
        return Output(x[:, 0])


class One(nn.Module):
    """One linear on inputs that are correlated and whose mean is far from 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.linear = nn.Embedding(70, 32), nn.Linear(32, 8)
        with torch.no_grad():
            self.words.weight.copy_(torch.randn(70, 3) @ torch.randn(3, 32) + 0.1 * torch.randn(70, 32) + 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        return Output(self.linear(self.words(input_ids)))


def tokens(count: int = 64, seed: int = 0) -> Tokens:
    """Documents of one length, so that nothing is padded."""
    ids = np.random.default_rng(seed).integers(5, 70, count * LENGTH).astype(np.int32)
    offsets = np.arange(0, len(ids) + 1, LENGTH)
    return Tokens(ids, np.zeros_like(ids), offsets, np.zeros(count, np.int64), 0)


TOKENS, ROWS = tokens(), np.arange(64)
BATCHES = batches(TOKENS, ROWS)


def prepared(model: Any, scheme: str = "u8s8_static", **departures: Any) -> Any:
    replace.quantize(model.eval(), scheme, (), EXAMPLE, 32, **departures)
    calibrate(model, spec.Quant(calibration="x", method="minmax", scheme=scheme), TOKENS, ROWS)
    return model


@torch.no_grad()
def answers(model: Any, quantized: bool = True) -> Tensor:
    ids = torch.from_numpy(TOKENS.ids.astype(np.int64)).reshape(-1, LENGTH).clone()
    off = {"disable_act_quant": not quantized, "disable_weight_quant": not quantized}
    with quantization_status_manager(model, is_training=False, **off):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.double()  # type: ignore[no-any-return]


def error(model: Any, expected: Tensor) -> float:
    return float((answers(model) - expected).square().mean())


def test_only_what_linears_alone_read_is_found_to_be_scalable() -> None:
    found = [("first", ["q", "k", "v"]), ("v", ["o"]), ("second", ["up"])]
    for times in (1, 2):  # twice: layers that share their weights
        model = prepared(Block(times))
        before = answers(model)
        assert ptq.pairs(model, EXAMPLE) == found
        assert torch.equal(answers(model), before)
    bert = tiny.bert(num_hidden_layers=1)  # its norms come last: the residual reads them too, but for the pooler's
    name = "bert.encoder.layer.0"
    assert ptq.pairs(replace.quantize(bert, "u8s8_static", (), EXAMPLE), EXAMPLE) == [
        (f"{name}.attention.self.value", [f"{name}.attention.output.dense"]),
        (f"{name}.output.LayerNorm", ["bert.pooler.dense"]),
    ]


def outliers() -> Block:
    model = Block()
    with torch.no_grad():
        for norm in (model.first, model.second):
            norm.weight[::5] *= 60
            norm.bias.normal_()
        for linear in (model.q, model.k, model.v, model.up):
            linear.weight[:, ::5] /= 60
    return model


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_equalization_changes_nothing_in_float(alpha: float) -> None:
    model = prepared(outliers())
    found, inputs = ptq.pairs(model, EXAMPLE), moments(model, BATCHES)
    model.double()
    before = answers(model, quantized=False)
    ptq.equalize(model, inputs, found, alpha)
    torch.testing.assert_close(answers(model, quantized=False), before, rtol=0, atol=1e-10)
    plain = outliers()
    weight_C = torch.cat([plain.q.weight, plain.k.weight, plain.v.weight]).abs().amax(0)
    scale_C = inputs["q"].largest_C ** alpha / weight_C ** (1 - alpha)
    torch.testing.assert_close(model.first.weight, (plain.first.weight / scale_C).double(), rtol=1e-5, atol=1e-6)


def test_equalization_makes_up_for_channels_with_outliers() -> None:
    model = prepared(outliers())
    expected, plain = answers(model, quantized=False), error(model, answers(model, quantized=False))
    ptq.equalize(model, moments(model, BATCHES), ptq.pairs(model, EXAMPLE))
    calibrate(model, spec.Quant(calibration="x", method="minmax"), TOKENS, ROWS)
    assert error(model, expected) < 0.5 * plain


@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static", "w4_block"])
def test_bias_correction_makes_mean_outputs_those_of_the_float_layer_as_brevitas_does(scheme: str) -> None:
    model, theirs = prepared(One(), scheme), prepared(One(), scheme)
    inputs = moments(model, BATCHES)
    wanted = model.linear.weight.detach() @ inputs["linear"].mean_C + model.linear.bias.detach()

    def gap() -> float:
        return float((answers(model).mean((0, 1)) - wanted).abs().max())

    before = gap()
    ptq.correct_bias(model, inputs, ptq.float_weights(model))
    assert gap() < 1e-5 < 1e-3 < before
    with torch.no_grad(), bias_correction_mode(theirs):
        for i in range(0, 64, 16):
            ids = torch.from_numpy(TOKENS.gather(np.arange(i, i + 16))[0])
            theirs(input_ids=ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(model.linear.bias, theirs.linear.bias, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "departures"),
    [
        ("u8s8_static", {}),
        ("u8s7_static", {}),
        ("w4_block", {}),
        ("u8s8_static", {"weight_bits": 3}),
        ("u8s8_static", {"weight_bits": 4, "learned": True}),
        ("u8s8_static", {"per_channel": False}),
    ],
)
@pytest.mark.parametrize("technique", [ptq.gptq, learn_rounding])
def test_weights_are_rounded_with_correlated_inputs_in_mind_on_the_grid_that_there_was(
    technique: Callable[..., None], scheme: str, departures: dict[str, Any]
) -> None:
    model = prepared(One(), scheme, **departures)
    layer, inputs = model.linear, moments(model, BATCHES)
    exact, before = layer.weight.detach().double(), ptq.grid(layer)
    second = inputs["linear"].second_CC.double()

    def lost() -> float:
        delta = layer.weight_quant(layer.weight).detach().double() - exact
        return float(((delta @ second) * delta).sum())

    nearest = lost()
    technique(model, inputs)
    assert lost() < 0.3 * nearest
    torch.testing.assert_close(ptq.grid(layer).step_RC, before.step_RC, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.weight_quant(layer.weight), layer.weight, rtol=1e-5, atol=1e-6)
    assert (layer.weight / before.step_RC).abs().max() <= before.limit * (1 + 1e-6)


def test_learned_rounding_goes_up_or_down_and_comes_nearer_to_the_best_of_all_roundings() -> None:
    left = []
    for seed in range(12):
        torch.manual_seed(seed)
        x = torch.randn(200, 2) @ torch.randn(2, 10) + 0.1 * torch.randn(200, 10)
        second, limit, weight = (x.T @ x / len(x)).double(), 7, torch.randn(1, 10).double()
        step = (weight.abs().max() / limit).expand(1, 10)
        held = torch.where(weight.abs() == weight.abs().max(), weight.sign() * limit, 0)
        ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)), dtype=torch.float64)
        every = torch.where(held != 0, held, (weight / step).floor() + ups) * step

        def lost(rounded: Tensor, weight: Tensor = weight, second: Tensor = second) -> Tensor:
            return (((rounded - weight) @ second) * (rounded - weight)).sum(1)

        found = rounding.rounded(weight, ptq.Grid(step, held, limit), second)
        assert (found == every).all(1).any()
        best, nearest = lost(every).min(), lost((weight / step).round() * step)
        assert best <= lost(found) <= nearest
        left.append(float((lost(found) / best).log() / (nearest / best).log().clamp_min(1e-9)))
    assert np.mean(left) < 0.7, "of the logarithm that rounding to nearest leaves"


def test_moments_are_those_of_a_float64_reference_and_leave_padding_out() -> None:
    model, ragged = tiny.bert(num_hidden_layers=1), tiny.tokens(tiny.split(20, 0))
    replace.quantize(model, "u8s8_static", (), EXAMPLE)
    calibrate(model, spec.Quant(calibration="x"), ragged, np.arange(20))
    seen: list[Tensor] = []
    name = "bert.encoder.layer.0.intermediate.dense"
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, args: seen.append(args[0][0].double()))
    for i in range(20):
        ids = torch.from_numpy(ragged.gather(np.asarray([i]))[0])
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    handle.remove()
    found, x = moments(model, batches(ragged, np.arange(20)))[name], torch.cat(seen)
    q = model.get_submodule(name).input_quant(x.float()).double()
    assert found.count == len(x) == len(ragged.ids)
    pairs = [
        (found.largest_C, x.abs().amax(0)),
        (found.mean_C, x.mean(0)),
        (found.quantized_mean_C, q.mean(0)),
        (found.second_CC, q.T @ q / len(q)),
    ]
    for got, wanted in pairs:
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize("technique", [ptq.gptq, learn_rounding])
def test_a_row_of_zeros_and_an_input_that_is_always_zero_stay_finite(technique: Callable[..., None]) -> None:
    model = One()
    with torch.no_grad():
        model.linear.weight[0] = 0
        model.words.weight[:, 3] = 0
    prepared(model)
    inputs, weights = moments(model, BATCHES), ptq.float_weights(model)
    technique(model, inputs)
    ptq.correct_bias(model, inputs, weights)
    assert answers(model).isfinite().all() and (model.linear.weight[0] == 0).all()


@pytest.mark.parametrize("scheme", ["u8s8_static", "w4_block"])
def test_the_search_leaves_the_best_try_in_a_model_that_still_loads_and_trains(scheme: str) -> None:
    model, other = prepared(outliers(), scheme), prepared(Block(), scheme)
    expected, quant = answers(model, quantized=False), spec.Quant(calibration="x", scheme=scheme)  # type: ignore[arg-type]
    plain = error(model, expected)
    tries = search(model, quant, BATCHES, EXAMPLE, lambda: {"kl": error(model, expected)}, Progress(quiet=True))
    best = min(tries, key=lambda found: found["kl"])
    assert [found["best"] for found in tries].count(True) == 1 and best["best"]
    assert error(model, expected) == best["kl"] < 0.7 * plain
    assert {"GPTQ", "learned rounding"} & {*best["techniques"]}
    assert len(tries) == (4 if scheme == "u8s8_static" else 1) + 4
    assert not any({"GPTQ", "learned rounding"} <= {*found["techniques"]} for found in tries), "either, not both"
    assert all(p.requires_grad for name, p in model.named_parameters() if name.endswith(("weight", "bias")))
    other.load_state_dict(model.state_dict())
    assert torch.equal(answers(other), answers(model))


def test_a_try_whose_answers_are_not_finite_is_left_out_and_is_never_the_best() -> None:
    model, told = prepared(outliers()), iter([float("nan"), 3.0, 2.0, 4.0, 5.0, float("inf"), 7.0, 6.0])
    quant = spec.Quant(calibration="x")
    tries = search(model, quant, BATCHES, EXAMPLE, lambda: {"kl": next(told)}, Progress(quiet=True))
    assert [found["kl"] for found in tries] == [3.0, 2.0, 4.0, 5.0, 7.0, 6.0]
    assert [found["kl"] for found in tries if found["best"]] == [2.0]
    with pytest.raises(TrainingError, match="no way to choose ranges gives finite answers"):
        search(prepared(outliers()), quant, BATCHES, EXAMPLE, lambda: {"kl": float("nan")}, Progress(quiet=True))


@pytest.mark.parametrize(
    ("scheme", "departures", "near"),
    [
        ("u8s8_static", {}, 1e-5),
        ("u8s8_static", {"weight_bits": 4, "learned": True}, 1e-5),
        ("u8s8_static", {"per_channel": False}, 0.02),  # a row's largest weight is rounded, too
        ("w4_block", {}, 2e-3),  # scales are stored in float16
    ],
)
def test_the_weights_from_before_all_that_ptq_did_are_found_again(
    scheme: str, departures: dict[str, Any], near: float
) -> None:
    model = prepared(outliers(), scheme, **departures)
    plain = copy.deepcopy(model)
    expected, found, inputs = answers(model, quantized=False), ptq.pairs(model, EXAMPLE), moments(model, BATCHES)
    ptq.equalize(model, inputs, found)
    wanted, biases = ptq.float_weights(model), {name: model.get_submodule(name).bias.clone() for name in ("v", "o")}
    ptq.gptq(model, moments(model, BATCHES))
    ptq.correct_bias(model, moments(model, BATCHES), wanted)
    floats = ptq.unrounded(model, plain, found)
    assert all(not torch.equal(model.get_submodule(name).weight, weight) for name, weight in wanted.items())
    for name, weight in wanted.items():
        torch.testing.assert_close(floats[name]["weight"], weight, rtol=near, atol=1e-6)
    for name, bias in biases.items():
        torch.testing.assert_close(floats[name]["bias"], bias, rtol=near, atol=1e-6)
    for name, parts in floats.items():
        model.get_submodule(name).load_state_dict(parts, strict=False)
    assert float((answers(model, quantized=False) - expected).abs().max()) < 5 * near * float(expected.abs().max())
