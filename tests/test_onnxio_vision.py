"""Image classifiers, tiny and random, as students in int8: convolutions and linear layers with the same code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import bert
from tiny_vision import FAMILIES, IMAGE, SIZE, classifier, pixels
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from edgekd import spec
from edgekd.errors import ExportError
from edgekd.onnxio import export, parity, scales
from edgekd.onnxio.audit import audit, session
from edgekd.onnxio.files import read
from edgekd.onnxio.names import module_path
from edgekd.quant import grids
from edgekd.quant.calibrate import calibrate_on
from edgekd.quant.replace import quantize

STATIC = ("u8s8_static", "u8s7_static", "s8s8_static")
FEEDS = [{name: tensor.numpy() for name, tensor in pixels(batch, batch).items()} for batch in (1, 3)]


def quantized(model: Any, scheme: str, keep: tuple[str, ...] = ()) -> Any:
    batches = [pixels(8, seed) for seed in (4, 5)]
    quantize(model, scheme, keep, batches[0])
    calibrate_on(model, spec.Quant(calibration="x", method="minmax"), batches)
    return model


def answers(model: Any) -> list[np.ndarray]:
    with torch.no_grad():
        return [model(pixel_values=torch.from_numpy(feed["pixel_values"])).logits.numpy() for feed in FEEDS]


def check(model: Any, path: Path, keep: tuple[str, ...]) -> dict[str, Any]:
    """Export; the audit and the parity gate (which asks for finite answers too) must agree. Returns the audit."""
    graph = export.export_quantized(model, path, opset=17, keep_float=keep, image=IMAGE)
    assert [(v.name, v.type.tensor_type.shape.dim[0].dim_param) for v in graph.graph.input] == [
        ("pixel_values", "batch")
    ]
    audited = audit(path, keep)  # a float product that no glob names is an error
    expected = np.concatenate(answers(model))
    report = parity.gate(model, path, FEEDS, expected.argmax(1), min_agreement=1.0, max_score_gap=0.0)
    assert report["examples"] == 4 and report["module"]["error"] < 0.01
    assert all(pair["max_abs"] < 0.03 * np.abs(expected).max() for pair in report["pairs"].values())
    return audited


@pytest.mark.parametrize(
    ("name", "scheme"),
    [*((name, scheme) for name in FAMILIES if " " not in name for scheme in STATIC), ("ResNet bottleneck", STATIC[0])],
)
def test_every_product_of_an_image_classifier_is_int8_and_it_answers_as_it_was_trained_to(
    name: str, scheme: str, tmp_path: Path
) -> None:
    keep = ("*.attention.MatMul*",) if name == "ViT" else ()
    model = classifier(name)
    exact = answers(model)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in layers)
    audited = check(quantized(model, scheme, keep), tmp_path / "model.onnx", keep)
    assert audited["int8"] == len(layers) and audited["float"] == len(keep) * 2
    assert audited["operators"]["QLinearConv"] == convolutions and "Conv" not in audited["operators"]
    assert name == "ViT" or audited["int8_mac_share"] == 1
    apart = np.concatenate(answers(model)) - np.concatenate(exact)
    assert np.abs(apart).max() < 0.2 * np.abs(np.concatenate(exact)).max()  # and eight bits are near the float model


def test_a_corrupted_scale_of_a_convolution_is_named_even_where_the_file_holds_a_larger_one(tmp_path: Path) -> None:
    model = quantized(classifier("ResNet"), "u8s8_static")
    layer = model.resnet.embedder.embedder.convolution
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = 0, 1  # too large a bias for the scale of such weights
    graph = export.export_quantized(model, tmp_path / "model.onnx", opset=17, image=IMAGE)
    scales.check(model, graph)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    path = "resnet.embedder.embedder.convolution"
    convolution = next(n for n in graph.graph.node if n.op_type == "Conv" and module_path(n.name).startswith(path))
    made = {node.output[0]: node for node in graph.graph.node}
    names = [made[name].input[1] for name in convolution.input]
    names += [n.input[1] for n in graph.graph.node if n.op_type == "QuantizeLinear" and "output_quant" in n.name]
    assert onnx.numpy_helper.to_array(tensors[names[1]])[0] > 1e-10 > grids.of(model, f"{path}.weight_quant").scale[0]
    for name in names:
        kept = onnx.numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(np.asarray(kept * np.float32(1.001)), name))
        with pytest.raises(ExportError, match=rf"^{re.escape(name)} is "):
            scales.check(model, graph)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(kept, name))


class Residual(nn.Module):
    """What cannot be folded or quantized at once: a batch norm beside a sum, and a convolution that is kept."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.kept, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.norm.running_mean = torch.randn(8)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        x = self.stem(pixel_values)
        x = x + self.kept(torch.relu(self.norm(x)))
        return ImageClassifierOutput(logits=10 * self.head(x.square().mean((2, 3))))


def test_what_is_not_folded_or_kept_is_computed_in_float(tmp_path: Path) -> None:
    audited = check(quantized(Residual().eval(), "u8s8_static", ("kept",)), tmp_path / "model.onnx", ("kept",))
    assert {row["node"]: row["operator"] for row in audited["multiplications"]}["stem.Conv"] == "QLinearConv"
    assert audited["operators"]["Conv"] == audited["operators"]["BatchNormalization"] == 1


def test_a_convolution_left_in_float_is_named(tmp_path: Path) -> None:
    model = quantized(Residual().eval(), "u8s8_static", ("kept",))
    export.export_quantized(model, tmp_path / "model.onnx", opset=17, keep_float=("kept",), image=IMAGE)
    with pytest.raises(ExportError, match=r"runs in float though nothing keeps it there: kept\.Conv \(\w*Conv\)"):
        audit(tmp_path / "model.onnx", ("norm",))


def test_a_convolution_inside_a_sequential_goes_by_its_modules_name(tmp_path: Path) -> None:
    keep = ("resnet.encoder.stages.0.layers.0.layer.0.convolution",)
    model = classifier("ResNet")
    assert type(model.resnet.encoder.stages[0].layers[0].layer) is nn.Sequential
    audited = check(quantized(model, "u8s8_static", keep), tmp_path / "model.onnx", keep)
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert {row["node"].rpartition(".")[0] for row in audited["multiplications"]} == layers > set(keep)


@pytest.mark.parametrize("name", ["MobileNetV2", "ViT"])
def test_a_float_image_classifier_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    export.export_float(model, tmp_path / "model.onnx", opset=17, image=IMAGE)
    runner = session(read(tmp_path / "model.onnx"))
    for feed, answer in zip(FEEDS, answers(model), strict=True):
        np.testing.assert_allclose(runner.run(None, feed)[0], answer, atol=1e-4 * np.abs(answer).max())


def test_multiplications_of_a_convolution_are_counted_by_hand(tmp_path: Path) -> None:
    model = quantized(Residual().eval(), "u8s8_static", ("kept",))
    export.export_quantized(model, tmp_path / "model.onnx", opset=17, keep_float=("kept",), image=IMAGE)
    rows = {row["node"]: row["macs"] for row in audit(tmp_path / "model.onnx", ("kept",))["multiplications"]}
    places = SIZE * SIZE
    assert rows == {"stem.Conv": places * 8 * 3 * 9, "kept.Conv": places * 8 * 8 * 9, "head.Gemm": 8 * 4}


def test_an_image_model_needs_a_size_and_a_text_model_none(tmp_path: Path) -> None:
    assert export.accepted_inputs(Residual().eval()) == ("pixel_values",)
    assert export.accepted_inputs(bert()) == ("input_ids", "attention_mask", "token_type_ids")
    with pytest.raises(ExportError, match=r"Residual reads images.*image=\(channels, height, width\)"):
        export.export_float(Residual().eval(), tmp_path / "model.onnx", opset=17)
