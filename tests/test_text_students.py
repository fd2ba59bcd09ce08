"""Claims about students without attention: what they compute, and that they go through the whole line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_target
import torch
from tiny_onnx import VOCABULARY, feed, logits, tensors
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from edgekd import catalog, pipeline, plan, shape, spec
from edgekd.errors import ExportError, TargetError
from edgekd.models import loading  # noqa: F401 (makes the two known to transformers)
from edgekd.models.student import skeleton
from edgekd.onnxio import export, parity
from edgekd.onnxio.audit import audit, session
from edgekd.onnxio.files import read
from edgekd.quant.calibrate import calibrate_on
from edgekd.quant.replace import quantize
from edgekd.store import read_json

CNN: dict[str, Any] = {"model_type": "edgekd_text_cnn", "hidden_size": 24, "widths": (2, 3, 5)}
LSTM: dict[str, Any] = {"model_type": "edgekd_text_lstm", "hidden_size": 24, "num_hidden_layers": 2}
KINDS = {"cnn": (CNN, ()), "lstm": (LSTM, ("lstm",))}
"""Each with what a target has to keep in float."""
SHAPES = ((1, 1, 0), (3, 1, 0), (1, 40, 0), (3, 40, 11))
"""(batch, length, padded tokens of the last row)."""
FAST = spec.Optimizer(learning_rate=1e-2, batch_size=16)


def classifier(options: dict[str, Any]) -> Any:
    """A model whose logits tell inputs apart."""
    torch.manual_seed(0)
    given = {name: value for name, value in options.items() if name != "model_type"}
    config = AutoConfig.for_model(options["model_type"], vocab_size=VOCABULARY, num_labels=4, pad_token_id=0, **given)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def inputs(batch: int, length: int, padding: int) -> dict[str, np.ndarray]:
    arrays = feed(batch, length, 2, padding)
    return {"input_ids": np.maximum(arrays["input_ids"], 1), "attention_mask": arrays["attention_mask"]}


def quantized(model: Any, scheme: str = "u8s8_static", keep_float: tuple[str, ...] = ()) -> Any:
    batches = [tensors(inputs(8, 20, 9)) for _ in range(2)]
    quantize(model, scheme, keep_float, batches[0])
    calibrate_on(model, spec.Quant(calibration="x", method="minmax"), batches)
    return model.eval()


def by_hand(model: Any, ids: list[int]) -> Tensor:
    """The logits of one text, in float64, window by window and step by step."""
    model = model.double()
    rows = list(model.embeddings.weight.detach()[ids])
    width = len(rows[0])
    if model.config.model_type == "edgekd_text_cnn":
        pooled = []
        for layer in model.convolutions:
            weight = layer.weight.detach()[:, :, 0]
            size = weight.shape[2]
            nothing = [torch.zeros(width).double()] * size
            whole = [*nothing, *rows, *nothing]
            windows = [torch.stack(whole[i : i + size], 1) for i in range(len(whole) - size + 1)]
            found = torch.stack([(weight * window).sum((1, 2)) + layer.bias.detach() for window in windows])
            pooled.append(found.clamp_min(0).amax(0))
        return model.classifier(torch.cat(pooled)).detach()
    for layer in model.lstm:
        ahead, back = walk(layer.forwards, rows), walk(layer.backwards, rows[::-1])[::-1]
        rows = [torch.cat(pair) for pair in zip(ahead, back, strict=True)]
    return model.classifier(torch.stack(rows).amax(0)).detach()


def walk(lstm: Any, rows: list[Tensor]) -> list[Tensor]:
    """Hochreiter and Schmidhuber's cell with a forget gate, in torch's order of gates."""
    h = c = torch.zeros(lstm.hidden_size).double()
    found = []
    for x in rows:
        gates = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
        i, f, g, o = gates.detach().chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        found.append(h)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_its_paper_says(kind: str) -> None:
    model = classifier(KINDS[kind][0]).double()
    arrays = inputs(3, 9, 4)
    found = logits(model, arrays)
    for row, (ids, mask) in enumerate(zip(arrays["input_ids"], arrays["attention_mask"], strict=True)):
        np.testing.assert_allclose(found[row], by_hand(model, ids[mask == 1].tolist()), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fake", [False, True], ids=["float", "int8"])
def test_padding_does_not_change_the_logits_whatever_stands_there(kind: str, fake: bool) -> None:
    options, keep = KINDS[kind]
    model = classifier(options)
    if fake:
        quantized(model, keep_float=keep)
    arrays = inputs(2, 7, 0)
    expected = logits(model, arrays)
    rng = np.random.default_rng(0)
    for more in (1, 6, 30):
        noise = rng.integers(1, VOCABULARY, (2, more))
        padded = {
            "input_ids": np.concatenate([arrays["input_ids"], noise], 1),
            "attention_mask": np.pad(arrays["attention_mask"], ((0, 0), (0, more))),
        }
        np.testing.assert_allclose(logits(model, padded), expected, rtol=0, atol=1e-5)
        other = padded | {"input_ids": np.concatenate([arrays["input_ids"], np.zeros_like(noise)], 1)}
        assert np.array_equal(logits(model, other), logits(model, padded))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_that_its_answer_is_the_maximum_of(kind: str) -> None:
    model = classifier(KINDS[kind][0])
    given = tensors(inputs(2, 9, 0))
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
        states, last = out.hidden_states[0], out.hidden_states[-1]
        assert len(out.hidden_states) == model.config.num_hidden_layers + 1
        assert all(state.shape == (2, 9, model.config.hidden_size) for state in out.hidden_states)
        torch.testing.assert_close(states, model.embeddings(given["input_ids"]))
        pooled = last.amax(1)
        if kind == "cnn":  # windows that begin before the text are no token's
            more = last.new_zeros(2, len(pooled[0]))
            begin = 0
            for layer in model.convolutions:
                size, count = layer.kernel_size[1], layer.out_channels
                found = layer(states.transpose(1, 2).unsqueeze(2))[:, :, 0]
                torch.testing.assert_close(last[..., begin : begin + count], found[..., size:-1].relu().transpose(1, 2))
                more[:, begin : begin + count] = found[..., [*range(size), -1]].amax(-1)
                begin += count
            pooled = pooled.maximum(more)
        torch.testing.assert_close(model.classifier(pooled), out.logits)


@pytest.mark.parametrize(
    ("kind", "scheme", "opset"),
    [
        *(("cnn", scheme, 17) for scheme in ("u8s8_static", "u8s7_static", "s8s8_static")),
        *(("cnn", "u8s8_static", 20), ("lstm", "u8s8_static", 17), ("lstm", "u8s8_dynamic", 20)),
    ],
)
def test_the_exported_student_answers_as_it_was_trained_to(kind: str, scheme: str, opset: int, tmp_path: Path) -> None:
    (options, keep), path = KINDS[kind], tmp_path / "model.onnx"
    model = quantized(classifier(options), scheme, keep)
    export.export_quantized(model, path, opset=opset, keep_float=keep)
    feeds = [inputs(*shape) for shape in SHAPES]
    expected = [logits(model, arrays) for arrays in feeds]
    audited = audit(path, keep)
    rows = {row["node"]: (row["kind"], row["macs"]) for row in audited["multiplications"]}
    if kind == "cnn":
        assert audited["float"] == 0 and audited["int8_mac_share"] == 1
        assert {name: rows[f"convolutions.{i}.Conv"][1] for i, name in enumerate("abc")} == {
            "a": (64 + 2 + 1) * 8 * 24 * 2, "b": (64 + 3 + 1) * 8 * 24 * 3, "c": (64 + 5 + 1) * 8 * 24 * 5
        }  # fmt: skip
        assert audited["operators"]["ReduceMax"] == 3 and "Relu" not in audited["operators"]
    else:
        assert audited["float"] == audited["operators"]["LSTM"] == 4 and audited["int8"] == 1
        assert rows["lstm.1.backwards.LSTM"] == ("float", 64 * 4 * 12 * (24 + 12))
    report = parity.gate(model, path, feeds, np.concatenate(expected).argmax(1), min_agreement=1.0, max_score_gap=0.0)
    assert report["module"]["error"] < 0.01
    for optimize in (False, True):
        runner = session(read(path), optimize=optimize)
        for arrays, answer in zip(feeds, expected, strict=True):
            np.testing.assert_allclose(runner.run(None, arrays)[0], answer, atol=0.02 * np.abs(answer).max())


def test_an_lstm_that_no_glob_names_is_refused_before_training_and_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"lstm\.0\.forwards of Classifier is a LSTM, which no scheme .* keep_float"):
        quantize(skeleton(LSTM), "u8s8_static", (), {})
    path = tmp_path / "model.onnx"
    export.export_quantized(quantized(classifier(LSTM), keep_float=("lstm",)), path, opset=17, keep_float=("lstm",))
    with pytest.raises(ExportError, match=r"runs in float though nothing keeps it there: lstm\.0\.forwards\.LSTM"):
        audit(path, ("classifier",))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (CNN | {"hidden_size": 25}, "must be positive, and divide"),
        (CNN | {"widths": ()}, "must be positive, and divide"),
        (CNN | {"widths": (0, 1, 2)}, "must be positive, and divide"),
        (CNN | {"num_hidden_layers": 2}, "num_hidden_layers is 1, not 2"),
        (LSTM | {"hidden_size": 25}, "must be even"),
        (LSTM | {"num_hidden_layers": 0}, ">= 1"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(TargetError, match=reason):
        skeleton(options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_counted_as_the_model_has_it(kind: str) -> None:
    model = classifier(KINDS[kind][0])
    found = shape.tensors(model.config.to_dict(), 4)
    assert found is not None
    assert {tensor.name: tensor.count for tensor in found} == {n: p.numel() for n, p in model.named_parameters()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("students")


def target(folder: Path, kind: str, losses: tuple[Any, ...] = (spec.KL(),), **quant: Any) -> tuple[spec.Target, Path]:
    options, keep = KINDS[kind]
    path = tiny_target.write(folder, epochs=2)
    base = catalog.load(str(path))
    return dataclasses.replace(
        base,
        student=spec.Student(config={**options, "widths": [2, 3, 5]} if kind == "cnn" else options, vocabulary=70),
        distill=dataclasses.replace(base.distill, losses=losses, epochs=6, optimizer=FAST),
        quant=dataclasses.replace(base.quant, **{"keep_float": keep, **quant}),
    ), path


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_teaches_it_through_the_whole_line(kind: str, folder: Path) -> None:
    losses = (spec.KL(1.0, temperature=2.0), spec.HiddenMSE(0.1), spec.RKD(0.1, group=8))
    wanted, path = target(folder, kind, losses)
    done = pipeline.run(wanted, folder=folder / "runs", beside=path, to="export")["stages"]
    stages = {name: Path(entry["folder"]) for name, entry in done.items()}
    history = [json.loads(line) for line in (stages["distill"] / "history.jsonl").read_text().splitlines()]
    taught = read_json(stages["distill"] / "scores.json")["validation"]
    assert taught["kl"] < 0.8 * history[0]["kl"]
    assert read_json(stages["quantize"] / "scores.json")["training"]["steps"] > 0
    assert set(read_json(stages["export"] / "parity.json")) == {"student_ptq", "student_qad"}
    student = plan.plan(wanted, folder / "runs", beside=path)["student"]
    size = (stages["export"] / "student_qad" / "model.onnx").stat().st_size
    assert student["parameters"] == read_json(stages["distill"] / "student.json")["parameters"]
    assert student["int8_bytes_least"] <= size < 2 * student["int8_bytes"]


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("lstm", {"keep_float": ()}, r"lstm\.0\.forwards is an LSTM, which no scheme quantizes: add 'lstm'"),
        ("cnn", {"scheme": "w4_block"}, r"convolutions\.0 is a convolution, which w4_block does not quantize"),
        ("cnn", {"losses": (spec.KL(), spec.Relations())}, "Relations: edgekd_text_cnn has no attention"),
    ],
)
def test_a_plan_says_what_cannot_be_before_anything_is_fetched(
    kind: str, changes: dict[str, Any], reason: str, folder: Path
) -> None:
    wanted, path = target(folder, kind, **changes)
    with pytest.raises(TargetError, match=reason):
        plan.plan(wanted, folder / "nothing", beside=path)
