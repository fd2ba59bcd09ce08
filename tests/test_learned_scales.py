"""Learned scales: their gradients against Brevitas' own and the paper's formula, and where they start."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from brevitas.core.quant import RescalingIntQuant
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekd import spec
from edgekd.distill import loop
from edgekd.quant import calibrate, replace, weight_scales
from edgekd.quant.quantizers import act_parameters

IDS = torch.tensor([[2, 40, 50, 3]])


def learned(scheme: str = "u8s8_static", **departures: object) -> nn.Module:
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    model: nn.Module = replace.quantize(tiny.bert(0), scheme, ("classifier",), inputs, learned=True, **departures)
    tokens = tiny.tokens(tiny.split(30, 0))
    calibrate.calibrate(model, spec.Quant(calibration="x", scheme=scheme), tokens, np.arange(30))  # type: ignore[arg-type]
    return model.train()


def both_ways(quant: nn.Module, x: torch.Tensor, sent_back: torch.Tensor) -> list[list[torch.Tensor]]:
    """What comes out, and every gradient: ours, then Brevitas' by automatic differentiation of each of its steps."""
    found = []
    for forward in (type(quant).forward, RescalingIntQuant.forward):
        x.grad = None
        quant.zero_grad()
        y = forward(quant, x)[0]
        y.backward(sent_back)
        found.append([y.detach(), x.grad, *(p.grad.clone() for p in quant.parameters())])
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static"])
def test_an_activations_gradients_are_those_of_every_step_on_its_own_divided_as_the_paper_says(scheme, bits):
    proxy = next(iter(replace.act_quantizers(learned(scheme, act_bits=bits)).values()))
    quant = proxy.fused_activation_quant_proxy.tensor_quant
    rng = torch.Generator().manual_seed(bits)
    x = (3 * torch.randn(4, 6, 8, generator=rng)).requires_grad_()
    ours, theirs = both_ways(quant, x, torch.randn(4, 6, 8, generator=rng))
    high = 2**bits - 1 if scheme == "u8s8_static" else 2 ** (bits - 1) - 1
    torch.testing.assert_close(ours[:2], theirs[:2])
    divided = [gradient * (6 * 8 * high) ** -0.5 for gradient in theirs[2:]]
    torch.testing.assert_close(ours[2:], divided, rtol=1e-3, atol=1e-5)
    assert any(gradient.abs() > 1e-3 for gradient in ours[2:])


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_weights_gradients_are_those_of_every_step_on_its_own_divided_as_the_paper_says(bits, per_channel):
    layer = learned(weight_bits=bits, per_channel=per_channel).bert.encoder.layer[0].intermediate.dense
    weight = layer.weight.detach().clone().requires_grad_()
    ours, theirs = both_ways(layer.weight_quant.tensor_quant, weight, torch.randn_like(weight))
    values = weight[0].numel() if per_channel else weight.numel()
    torch.testing.assert_close(ours[:2], theirs[:2])
    factor = (values * (2 ** (bits - 1) - 1)) ** -0.5
    torch.testing.assert_close(ours[2], theirs[2] * factor, rtol=1e-3, atol=1e-5)


def test_training_moves_scales_and_they_are_not_decayed():
    model = learned()
    scales = [name for name, _ in model.named_parameters() if name.endswith("_impl.value")]
    assert len(scales) == (4 * 4 + 1) * 2 + 6 * 4 + 1  # range and shift of each input; a weight's
    optimizer = loop._adamw(model, spec.Optimizer(), torch.device("cpu"), ())
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    before = {name: value.clone() for name, value in model.state_dict().items() if name in scales}
    model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, 0].sum().mul(1e3).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert not decayed & {id(after[name]) for name in scales}
    for name in scales:  # a shift only moves where something is clipped
        assert "zero_point" in name or not torch.equal(before[name], after[name])


def test_without_learned_scales_no_scale_is_trained():
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    model = replace.quantize(tiny.bert(0), "u8s8_static", (), inputs)
    assert all(not p.requires_grad for q in replace.act_quantizers(model).values() for p in act_parameters(q))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 8]))
def test_a_weights_scale_starts_where_a_float64_search_finds_the_least_error(seed, bits):
    rows = np.random.default_rng(seed).standard_t(4, (3, 64))
    high = 2 ** (bits - 1) - 1
    found = weight_scales.least_error(torch.from_numpy(rows).float(), high).double().numpy()

    def error(row, threshold):
        scale = threshold / high
        return ((np.clip(np.round(row / scale), -high, high) * scale - row) ** 2).sum()

    for row, threshold in zip(rows, found, strict=True):
        best = min(error(row, share * np.abs(row).max()) for share in np.linspace(0.01, 1, 500))
        assert error(row, threshold) <= 1.1 * best


def test_a_row_of_zeros_has_a_scale_that_divides():
    assert weight_scales.least_error(torch.zeros(2, 4), 127).tolist() == [1, 1]


def test_a_scale_that_is_not_finite_makes_answers_that_are_not_and_no_error_of_its_own():
    model = learned()
    quant = next(iter(replace.act_quantizers(model).values())).fused_activation_quant_proxy.tensor_quant
    quant.scaling_impl.value.data.fill_(float("nan"))
    assert quant(torch.ones(1, 2, 3, requires_grad=True))[0].isnan().all()
