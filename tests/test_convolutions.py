"""Claims about convolutions under fake-quantization: batch norm folded away, ranges, gradients, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_vision import classifier, pixels
from torch import Tensor, nn
from torch.nn import functional

from edgekd import spec
from edgekd.errors import TargetError, TrainingError
from edgekd.progress import Progress
from edgekd.quant import ptq
from edgekd.quant.calibrate import calibrate_on
from edgekd.quant.flow import watch
from edgekd.quant.fold import fold_batch_norms, freeze_batch_norms
from edgekd.quant.replace import act_quantizers, quantize, schemes
from edgekd.quant.search import search

STATIC = ("u8s8_static", "u8s7_static", "s8s8_static")
IMAGE = {"pixel_values": torch.randn(1, 3, 8, 8)}
QUANT = spec.Quant(calibration="x", method="minmax")


class Net(nn.Module):
    """Two convolutions with batch norms behind them, put together by ``body(net, x)``."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        for norm in (self.norm, self.other):
            norm.running_mean = torch.randn(4)
            norm.running_var = torch.rand(4) + 0.5
        self.body = body

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.body(self, pixel_values)


def relu(x: Tensor) -> Tensor:
    return functional.relu(x)


@pytest.mark.parametrize("name", ["ResNet", "ResNet bottleneck", "MobileNetV2"])
def test_folded_batch_norms_leave_the_answers_as_they_were(name: str) -> None:
    model = classifier(name).double()
    given = {key: tensor.double() for key, tensor in pixels(2).items()}
    before = model(**given).logits
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(fold_batch_norms(model.train(), given)) == 2 * count > 0
    assert model.training and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model.eval()(**given).logits, before, rtol=0, atol=1e-10)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("body", "folded"),
    [
        (lambda n, x: n.other(n.second(relu(n.norm(n.first(x))))), ("first", "norm", "second", "other")),
        (lambda n, x: (y := n.first(x)) + n.norm(y), ()),
        (lambda n, x: n.norm(relu(n.first(x))), ()),
        (lambda n, x: n.norm(n.first(x)) + n.first(-x), ()),
        (lambda n, x: n.norm(n.first(x)) + n.norm(x[:, :1].expand(-1, 4, -1, -1)), ()),
        (lambda n, x: n.first(x).flatten(1), ()),
    ],
    ids=["a chain", "also added", "behind an activation", "a conv twice", "a norm twice", "no norm"],
)
def test_a_batch_norm_is_folded_only_where_nothing_else_changes(body: Any, folded: tuple[str, ...]) -> None:
    model, given = Net(body).double().eval(), {"pixel_values": torch.randn(2, 3, 8, 8).double()}
    before = model(**given)
    assert fold_batch_norms(model, given) == folded
    torch.testing.assert_close(model(**given), before, rtol=0, atol=1e-10)


def test_a_convolution_whose_output_the_model_returns_keeps_its_batch_norm_apart() -> None:
    model = Net(lambda n, x: (y := n.first(x), n.norm(y)))  # type: ignore[arg-type, return-value]
    assert fold_batch_norms(model, IMAGE) == ()


@pytest.mark.parametrize("scheme", STATIC)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_multiplies_integers_per_output_channel(scheme: str, training: bool, groups: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=groups))
    conv, x = net[0], torch.randn(2, 4, 9, 9)
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double()  # type: ignore[union-attr]
    model = quantize(Wrapped(net), scheme, (), {"pixel_values": x})
    calibrate_on(model, QUANT, [{"pixel_values": x}])
    most, signed = 63 if "s7" in scheme else 127, scheme.startswith("s8")
    step = weight.abs().amax((1, 2, 3), keepdim=True) / most

    def on_grid(values: Tensor) -> tuple[Tensor, float]:
        low, high = float(values.min()), float(values.max())
        scale = max(-low, high) / 128 if signed else (high - low) / 255
        zero = 0 if signed else round(-low / scale)
        ends = (-128, 127) if signed else (0, 255)
        return ((values / scale).round() + zero).clamp(*ends).sub(zero) * scale, scale

    exact = functional.conv2d(on_grid(x.double())[0], (weight / step).round() * step, bias, 2, 1, 2, groups)
    plain = functional.conv2d(x.double(), (weight / step).round() * step, bias, 2, 1, 2, groups)
    expected, scale = exact, on_grid(plain)[1]  # ranges are those of float activations
    found = model.train(training)(pixel_values=x).detach().double()
    assert (found - expected).abs().max() < scale  # half a step, or at the end of the range a little more
    assert len((found / scale).round().unique()) > 50


class Wrapped(nn.Module):
    """A module that takes its input by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.net(pixel_values)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (lambda n, x: n.second(n.first(x)), {"second"}),
        (lambda n, x: n.second(relu(n.first(x))), {"second"}),
        (lambda n, x: n.second(functional.max_pool2d(functional.pad(functional.relu6(n.first(x)), (1, 0)), 2)),
         {"second"}),
        (lambda n, x: n.second(functional.gelu(n.first(x))), {"first", "second"}),
        (lambda n, x: (y := relu(n.first(x))) + n.second(y), {"first", "second"}),
        (lambda n, x: n.second(n.second(n.first(x))), {"first", "second"}),
    ],
    ids=["at once", "relu", "relu6, pad and pool", "gelu", "also added", "called twice"],
)  # fmt: skip
def test_an_output_is_quantized_unless_the_next_layer_quantizes_it(body: Any, outputs: set[str]) -> None:
    model = quantize(Net(body), "u8s8_static", (), IMAGE)
    assert set(act_quantizers(model)) == {"first", "second"} | {f"{name}.output_quant" for name in outputs}


def test_an_output_is_quantized_where_the_next_layer_stays_in_float() -> None:
    model = quantize(Net(lambda n, x: n.second(relu(n.first(x)))), "u8s8_static", ("second",), IMAGE)
    assert set(act_quantizers(model)) == {"first", "first.output_quant"}


def test_layers_that_read_one_image_share_a_quantizer() -> None:
    model = Net(lambda n, x: n.first(x) + n.third(x))
    model.third = nn.Conv2d(3, 4, 1)
    quantize(model, "u8s8_static", (), IMAGE)
    assert model.first.input_quant is model.third.input_quant
    assert model.first.output_quant is not model.third.output_quant


@pytest.mark.parametrize(
    ("cut", "low", "high"), [(relu, 0, 100), (functional.relu6, 0, 6), (functional.hardtanh, -1, 1)]
)
def test_the_range_of_an_output_is_that_of_what_an_activation_leaves_of_it(cut: Any, low: float, high: float) -> None:
    x = 20 * torch.randn(2, 3, 8, 8)
    model = quantize(Net(lambda n, x: cut(n.first(x)).mean()), "u8s8_static", ("second",), {"pixel_values": x})
    found = calibrate_on(model, QUANT, [{"pixel_values": x}])
    reached = functional.conv2d(x, model.first.weight_quant(model.first.weight), padding=1).detach()
    expected = max(low, float(reached.min())), min(high, float(reached.max()))
    assert found["first.output_quant"] == pytest.approx(expected, rel=1e-5)
    assert found["first"] == pytest.approx((float(x.min()), float(x.max())))


def test_an_output_that_is_always_zero_is_named() -> None:
    model = quantize(Net(lambda n, x: relu(n.first(x)).mean()), "u8s8_static", ("second",), IMAGE)
    model.first.weight.data.abs_()
    with pytest.raises(TrainingError, match="the output of first has the range"):
        calibrate_on(model, QUANT, [{"pixel_values": -torch.rand(1, 3, 8, 8)}])


@pytest.mark.parametrize("learned", [False, True], ids=["scales of statistics", "learned scales"])
def test_a_training_step_reaches_every_weight_of_a_fake_quantized_resnet(learned: bool) -> None:
    model = classifier("ResNet")
    quantize(model, "u8s8_static", (), pixels(2), learned=learned)
    calibrate_on(model, QUANT, [pixels(4, seed) for seed in (0, 1)])
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.SGD([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.01)
    loss = functional.cross_entropy(model.train()(**pixels(4)).logits, torch.arange(4))
    loss.backward()
    optimizer.step()
    for name, tensor in model.named_parameters():
        scale = "_quant" in name
        assert tensor.requires_grad == (learned or not scale)
        assert scale or (tensor.grad.isfinite().all() and (tensor.grad != 0).any() and not tensor.equal(before[name]))
    after = functional.cross_entropy(model(**pixels(4)).logits, torch.arange(4))
    assert after < loss


def test_bias_correction_makes_a_convolutions_mean_outputs_those_in_float() -> None:
    model, batches = classifier("ResNet"), [pixels(4, 1), pixels(2, 2)]
    quantize(model, "u8s8_static", (), batches[0], weight_bits=3)
    calibrate_on(model, QUANT, batches)
    conv = model.resnet.embedder.embedder.convolution  # it reads what is corrected nowhere
    x = torch.cat([batch["pixel_values"] for batch in batches])
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
    expected = functional.conv2d(x.double(), weight, bias, conv.stride, conv.padding).mean((0, 2, 3))

    def gap() -> float:
        rounded, q = conv.weight_quant(conv.weight).detach().double(), conv.input_quant(x).detach().double()
        found = functional.conv2d(q, rounded, conv.bias.detach().double(), conv.stride, conv.padding)
        return float((found.mean((0, 2, 3)) - expected).abs().max())

    before = gap()
    ptq.correct_convolutions(model, batches)
    assert gap() < 1e-5 < 1e-3 < before
    assert torch.equal(conv.weight.double(), weight) and not any(m._forward_hooks for m in model.modules())


def test_the_search_for_the_best_ptq_corrects_the_biases_of_convolutions_where_that_helps() -> None:
    model, batches = classifier("ResNet"), [pixels(4, 1)]
    expected = model(**batches[0]).logits.detach()
    quantize(model, "u8s8_static", (), batches[0], weight_bits=3)

    def judge() -> dict[str, float]:
        with torch.no_grad():
            return {"kl": float((model(**batches[0]).logits - expected).square().mean())}

    tries = search(model, QUANT, batches, batches[0], judge, Progress(quiet=True))
    best = next(found for found in tries if found["best"])
    assert "bias correction" in best["techniques"] and judge()["kl"] == best["kl"] < 0.8 * tries[0]["kl"]


@pytest.mark.parametrize("scheme", ["u8s8_dynamic", "w4_block"])
def test_a_scheme_that_no_runtime_convolves_in_is_refused_by_the_layers_name(scheme: str) -> None:
    model = Net(lambda n, x: n.first(x))
    with pytest.raises(TargetError, match=rf"first of Net is a Conv2d, which {scheme} does not quantize: .*static"):
        schemes(model, scheme, ("second",))
    with pytest.raises(TargetError, match="quantizes nothing"):  # there is no other layer
        schemes(model, scheme, ("first", "second"))


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(3, 4, 3), nn.Conv1d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")]
)
@pytest.mark.parametrize("scheme", STATIC)
def test_other_convolutions_are_refused_unless_they_are_kept_in_float(layer: nn.Module, scheme: str) -> None:
    with pytest.raises(TargetError, match=r"net of Wrapped is a Conv.* name it in keep_float"):
        schemes(Wrapped(layer), scheme, ())
    with pytest.raises(TargetError, match="quantizes nothing"):  # there is no other layer
        schemes(Wrapped(layer), scheme, ("net",))


def test_watching_a_model_changes_nothing_in_it() -> None:
    model = Net(lambda n, x: n.norm(n.first(x)), seed=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flow = watch(model, {"pixel_values": torch.randn(2, 3, 8, 8)})
    assert flow.reader("first") == "norm" and flow.reader("norm") == "" and "second" not in flow.given
    assert model.training and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_batch_norm_that_is_frozen_keeps_its_statistics_in_training() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.ReLU(), norm).train()
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    freeze_batch_norms(model)
    x = torch.randn(4, 3, 5, 5)
    expected = torch.relu(x) / torch.sqrt(torch.tensor(1 + norm.eps))
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
