"""Which layers lose answers by quantization: planted faults come first, and figures agree with float64."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from brevitas.core.bit_width import BitWidthConst

from edgekd import diagnose, shape, spec, store
from edgekd.errors import StoreError, TargetError
from edgekd.progress import Progress
from edgekd.quant import replace, sensitivity
from edgekd.quant.calibrate import calibrate, ranges

TOKENS = tiny.tokens(tiny.split(12, 5))
LAYERS = [f"bert.encoder.layer.{i}." for i in (0, 1)]


def student(scheme: str = "u8s8_static", **changes: Any) -> tuple[Any, Any]:
    """A float classifier that heeds its input, and the same one fake-quantized and calibrated."""
    plain = tiny.bert(**({"num_hidden_layers": 2} | changes))
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    ids = torch.tensor([[2, 40, 50, 3]])
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = replace.quantize(copy.deepcopy(plain), scheme, (), example)
    calibrate(model, spec.Quant(calibration="x", method="minmax"), TOKENS, np.arange(len(TOKENS)))
    return plain, model


PLAIN, MODEL = student()


def plant(model: Any, *names: str) -> Any:
    """The model, with two bits left to the weights of these layers."""
    model = copy.deepcopy(model)
    for name in names:
        model.get_submodule(name).weight_quant.tensor_quant.msb_clamp_bit_width_impl = BitWidthConst(2)
    return model


@pytest.mark.parametrize("name", [LAYERS[0] + "attention.self.value", LAYERS[1] + "intermediate.dense"])
def test_a_planted_two_bit_layer_comes_first_by_every_measure(name: str) -> None:
    bars = tiny.Bars()
    found = sensitivity.measure(plant(MODEL, name), TOKENS, bars)
    assert found["layers"][0]["layer"] == name
    assert min(found["layers"], key=lambda row: row["sqnr_db"])["layer"] == name
    assert max(found["layers"], key=lambda row: row["won_back"])["layer"] == name
    assert found["quantizers"][0]["quantizer"] == f"{name}.weight"
    assert max(found["quantizers"], key=lambda row: row["won_back"])["quantizer"] == f"{name}.weight"
    assert found["keep_float"][0]["layer"] == name and found["keep_float"][0]["share"] > 0.5
    assert bars.done == bars.total


def test_two_broken_layers_are_both_found_and_kept_one_after_the_other() -> None:
    planted = {LAYERS[0] + "attention.self.value", LAYERS[1] + "attention.self.value"}
    found = sensitivity.measure(plant(MODEL, *planted), TOKENS)
    assert {row["layer"] for row in found["layers"][:2]} == planted
    kept = found["keep_float"]
    assert {row["layer"] for row in kept[:2]} == planted
    left = [found["kl"], *(row["kl"] for row in kept)]
    assert [row["share"] for row in kept] == pytest.approx(-np.diff(left) / found["kl"])


def test_the_ratio_of_signal_to_noise_is_that_of_float64_without_padding() -> None:
    name = LAYERS[1] + "intermediate.dense"
    layer, inputs = PLAIN.get_submodule(name), []
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0]))
    for row in range(len(TOKENS)):  # one by one, so that there is no padding
        ids, _, _ = TOKENS.gather(np.array([row]))
        with torch.no_grad():
            PLAIN(input_ids=torch.from_numpy(ids))
    handle.remove()
    x, w, b = (t.detach().double().numpy() for t in (torch.cat(inputs), layer.weight, layer.bias))
    low, high = ranges(MODEL)[name]
    step = (high - low) / 255
    zero = np.round(-low / step)
    x_quantized = (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step
    steps = np.abs(w).max(1, keepdims=True) / 127
    exact, found = x @ w.T + b, x_quantized @ (np.round(w / steps) * steps).T + b
    expected = 10 * math.log10(np.square(exact).sum() / np.square(found - exact).sum())
    rows = {row["layer"]: row for row in sensitivity.measure(MODEL, TOKENS)["layers"]}
    assert rows[name]["sqnr_db"] == pytest.approx(expected, abs=0.02)


def test_a_quantizer_that_changes_nothing_has_no_effect_at_all() -> None:
    model, name = copy.deepcopy(MODEL), LAYERS[0] + "output.dense"
    weight = model.get_submodule(name).weight
    with torch.no_grad():
        weight.copy_(torch.randint(-127, 128, weight.shape) / 128)
        weight[:, 0] = 127 / 128  # the largest of each row, so that every number stands on the grid
    rows = {row["quantizer"]: row for row in sensitivity.measure(model, TOKENS)["quantizers"]}
    assert rows[f"{name}.weight"] | {"layers": []} == {
        "quantizer": f"{name}.weight", "layers": [], "alone": 0.0, "won_back": 0.0
    }  # fmt: skip
    assert rows[f"{name}.input"]["alone"] > 0
    assert rows[LAYERS[0] + "attention.self.query.input"]["layers"] == [
        f"{LAYERS[0]}attention.self.{part}" for part in ("query", "key", "value")
    ]


def test_the_model_is_left_as_it_was_and_one_without_quantizers_is_refused() -> None:
    ids = torch.from_numpy(TOKENS.gather(np.arange(3))[0])
    with torch.no_grad():
        before = MODEL(input_ids=ids).logits
        sensitivity.measure(MODEL, tiny.tokens(tiny.split(3, 5)))
        assert torch.equal(MODEL(input_ids=ids).logits, before)
    assert not any(module.training for module in MODEL.modules())
    with pytest.raises(TargetError, match="nothing in this model is quantized"):
        sensitivity.measure(PLAIN, TOKENS)


@pytest.mark.parametrize("scheme", ["u8s8_dynamic", "w4_block"])
def test_schemes_without_ranges_are_measured_too(scheme: str) -> None:
    _, model = student(scheme, num_hidden_layers=1)
    found = sensitivity.measure(model, tiny.tokens(tiny.split(4, 5)))
    parts = {row["quantizer"].rpartition(".")[2] for row in found["quantizers"]}
    assert parts == ({"weight"} if scheme == "w4_block" else {"weight", "input"})
    assert all(row["alone"] > 0 and 0 < row["sqnr_db"] < 60 for row in found["layers"])


def test_what_a_key_was_made_of_becomes_the_dataclasses_again() -> None:
    for value in (
        spec.Quant(calibration="x", keep_float=("a", "b"), block=32, mixed={"c": "float", "a.*": "w4_block"}),
        spec.TextClassification(train="file:a", test="file:b", labels=("x", "y")),
        spec.Distill(losses=(spec.KL(0.5), spec.HiddenMSE(layers=((1, 2),)))),
    ):
        assert diagnose._restored(store.canonical(value)) == value


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"assets": "assets-1", "distill": "distill-1"}, "ends with distill: nothing is quantized yet"),
        ({"assets": "assets-1", "distill": "distill-1", "quantize": "quantize-1"}, "its manifest is missing"),
        ([], "no readable stages.json"),
    ],
)
def test_a_run_without_a_quantized_student_is_an_error_of_the_store(stages: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/stages.json").write_text(json.dumps(stages))
    with pytest.raises(StoreError, match=said):
        diagnose.diagnose(tmp_path / "run", "qad", 8, Progress(quiet=True))


def test_time_is_told_by_multiplications_and_only_where_it_was_measured(tmp_path: Path) -> None:
    stages = {name: store.Stage(name, "", tmp_path) for name in ("export", "bench")}
    assert diagnose._milliseconds({}, "qad") == (None, "bench not run")
    counted = [("a.Gemm", "int8", 30), ("b.Gemm", "int8", 10), ("c.MatMul", "float", 99)]
    multiplications = [{"node": n, "kind": k, "int8": k == "int8", "macs": m} for n, k, m in counted]
    store.write_json(tmp_path / "audit.json", {"student_qad": {"multiplications": multiplications}})
    rows: list[dict[str, Any]] = [
        {"artifact": name, "runtime": "ort_cpu", "threads": 1, "workload": "real", "p50_ms": p50, "valid": True}
        for name, p50 in (("teacher_fp32", 9.0), ("student_fp32", 1.0), ("student_qad", 0.6))
    ]
    store.write_json(tmp_path / "rows.json", rows)
    found, source = diagnose._milliseconds(stages, "qad")
    assert found == {"a": pytest.approx(0.3), "b": pytest.approx(0.1)} and "INVALID" not in source
    rows[1]["valid"] = False
    store.write_json(tmp_path / "rows.json", rows)
    assert "INVALID there" in diagnose._milliseconds(stages, "qad")[1]


def test_more_bytes_are_the_difference_between_two_files_by_arithmetic() -> None:
    for name in ("bert.pooler.dense", "bert.embeddings.word_embeddings"):
        for quant in (spec.Quant(calibration="x"), spec.Quant(scheme="w4_block")):
            parts = shape.tensors(PLAIN.config.to_dict(), PLAIN.config.num_labels)
            assert parts is not None
            kept = spec.Quant(scheme=quant.scheme, calibration="x", keep_float=(name,))
            expected = shape.file_bytes(parts, kept)[1] - shape.file_bytes(parts, quant)[1]
            assert diagnose._more_bytes(PLAIN.get_submodule(name), quant.scheme, quant.block) == expected
