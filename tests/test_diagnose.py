"""Which layers lose answers by quantization: planted faults come first, and figures agree with float64."""

from __future__ import annotations

import copy
import dataclasses
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
from edgekd.cli import diagnosis
from edgekd.distill import evaluate
from edgekd.errors import StoreError, TargetError
from edgekd.progress import Progress
from edgekd.quant import ptq, replace, sensitivity
from edgekd.quant.calibrate import batches, calibrate, ranges
from edgekd.quant.moments import moments

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


@pytest.mark.parametrize("techniques", [("GPTQ",), ("equalization", "GPTQ", "bias correction")])
def test_a_planted_layer_comes_first_though_ptq_has_rounded_its_weights_to_stay(techniques: tuple[str, ...]) -> None:
    name = LAYERS[0] + "attention.self.value"
    examples = batches(TOKENS, np.arange(len(TOKENS)))
    model = copy.deepcopy(MODEL)
    pairs = ptq.pairs(model, examples[0])
    assert name in dict(pairs)
    if "equalization" in techniques:
        ptq.equalize(model, moments(model, examples), pairs)
        calibrate(model, spec.Quant(calibration="x", method="minmax"), TOKENS, np.arange(len(TOKENS)))
    model = plant(model, name)  # not before: Brevitas makes quantizers anew where a weight is assigned
    weights = ptq.float_weights(model)
    ptq.gptq(model, moments(model, examples))
    if "bias correction" in techniques:
        ptq.correct_bias(model, moments(model, examples), weights)
    before = copy.deepcopy(model.state_dict())
    floats = ptq.unrounded(model, copy.deepcopy(MODEL), pairs if "equalization" in techniques else [])
    found = sensitivity.measure(model, TOKENS, None, floats)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert found["layers"][0]["layer"] == found["keep_float"][0]["layer"] == name
    assert min(found["layers"], key=lambda row: row["sqnr_db"])["layer"] == name
    assert found["quantizers"][0]["quantizer"] == f"{name}.weight"
    answers = [evaluate.logits(m, TOKENS) for m in (model, PLAIN)]  # of the float student, not of the rounded weights
    assert found["kl"] == pytest.approx(evaluate.compare(answers[0], TOKENS.labels, answers[1])["kl"], rel=1e-3)


def test_a_four_bit_layer_is_given_eight_bits_before_float_and_float_where_they_are_too_few() -> None:
    name, quant = LAYERS[0] + "intermediate.dense", spec.Quant(scheme="w4_block")
    plain, model = student("w4_block", num_hidden_layers=1)
    finer = diagnose._finer(model, copy.deepcopy(plain), quant, {}, "u8s8_dynamic")
    bars = tiny.Bars()
    found = sensitivity.measure(plant(model, name), TOKENS, bars, {}, finer)
    assert bars.done == bars.total
    row = found["mixed"][0]
    assert (row["layer"], row["scheme"]) == (name, "u8s8_dynamic")
    assert row["kl"] < found["keep_float"][0]["kl"] + sensitivity.WORTH * found["kl"]
    line = diagnose._mixed_line({name: "w4_block", "classifier": "float"}, {name: row["scheme"]})
    given: dict[str, Any] = {}
    exec(str(line), given)
    assert given["mixed"] == {name: "u8s8_dynamic", "classifier": "float"} and next(iter(given["mixed"])) == name
    ids = torch.tensor([[2, 40, 50, 3]])
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pasted = replace.quantize(copy.deepcopy(plain), "w4_block", (), example, mixed={name: "u8s8_dynamic"})
    assert row["kl"] == pytest.approx(sensitivity.measure(pasted, TOKENS)["kl"], rel=1e-3)
    finer[name] = "u8s8_dynamic", plant(finer[name][1], "")
    assert sensitivity.measure(plant(model, name), TOKENS, None, {}, finer)["mixed"][0]["scheme"] == "float"
    assert diagnose._mixed_line({}, {name: "float"}) is diagnose._mixed_line({}, {}) is None
    assert not diagnose._finer(model, plain, spec.Quant(calibration="x"), {}, "u8s8_dynamic")


def test_where_no_scheme_without_ranges_is_fast_a_four_bit_layer_is_tried_in_seven_bits_once_calibrated() -> None:
    eight = next(scheme for scheme in diagnose.EIGHT if scheme in spec.X86_AVX2.schemes)
    plain, model = student("w4_block", num_hidden_layers=1)
    name, quant = LAYERS[0] + "intermediate.dense", spec.Quant(scheme="w4_block")
    spare = copy.deepcopy(plain)
    finer = diagnose._finer(model, spare, quant, {}, eight)
    calibrate(spare, quant, TOKENS, np.arange(len(TOKENS)))
    row = sensitivity.measure(plant(model, name), TOKENS, None, {}, finer)["mixed"][0]
    assert (row["layer"], row["scheme"]) == (name, "u8s7_static") and row["share"] > 0.5
    assert "u8s7_static" in str(diagnose._mixed_line({}, {name: row["scheme"]}))


def test_the_device_is_the_one_that_the_report_names_and_its_times_may_be_a_stand_ins(tmp_path: Path) -> None:
    assert diagnose._device(tmp_path) == (spec.X86_VNNI, False)
    given = {"name": "old", "isa": "x86_64", "features": ["avx2"], "missing": ["no avx512_vnni"]}
    (tmp_path / "report.json").write_text(json.dumps({"device": given}))
    device, stand_in = diagnose._device(tmp_path)
    assert device.schemes == spec.X86_AVX2.schemes and stand_in


@pytest.mark.parametrize(("kind", "step", "trained"), [("ptq", 9, False), ("qad", 0, False), ("qad", 9, True)])
def test_weights_are_another_students_only_where_training_is_what_was_kept(
    kind: str, step: int, trained: bool, tmp_path: Path
) -> None:
    store.write_json(tmp_path / "scores.json", {"training": {"best": {"step": step}}})
    store.write_json(tmp_path / "ptq.json", [{"best": True, "techniques": ["equalization", "GPTQ"]}])
    model, layer = copy.deepcopy(MODEL), LAYERS[0] + "attention.self.value"
    with torch.no_grad():
        model.get_submodule(layer).weight.mul_(0.5)  # as equalization would
    floats = diagnose._floats(store.Stage("quantize", "", tmp_path), kind, model, copy.deepcopy(MODEL))
    assert floats.keys() == (set() if trained else {n for n, m in MODEL.named_modules() if hasattr(m, "input_quant")})
    if not trained:
        torch.testing.assert_close(floats[layer]["weight"], model.get_submodule(layer).weight, rtol=1e-6, atol=0)
        reader = LAYERS[0] + "attention.output.dense"
        torch.testing.assert_close(floats[reader]["weight"], 2 * MODEL.get_submodule(reader).weight, rtol=1e-6, atol=0)


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
    assert diagnose._milliseconds({}, "qad") == ({}, "bench not run")
    counted = [("a.Gemm", "int8", 30), ("b.MatMul", "int8", 4), ("b.MatMul_1", "int8", 6), ("c.MatMul", "float", 99)]
    multiplications = [{"node": n, "kind": k, "int8": k == "int8", "macs": m} for n, k, m in counted]
    store.write_json(tmp_path / "audit.json", {"student_qad": {"multiplications": multiplications}})
    rows: list[dict[str, Any]] = [
        {"artifact": name, "runtime": "ort_cpu", "threads": 1, "workload": "real", "p50_ms": p50, "valid": True}
        for name, p50 in (("teacher_fp32", 9.0), ("student_fp32", 1.0), ("student_qad", 0.6))
    ]
    store.write_json(tmp_path / "rows.json", rows)
    found, source = diagnose._milliseconds(stages, "qad")
    own = {"a": 0.3, "a.Gemm": 0.3, "b": 0.1, "b.MatMul": 0.04, "b.MatMul_1": 0.06}
    assert found == {"float": pytest.approx(own)} and "INVALID" not in source
    rows.append(rows[0] | {"artifact": "teacher_ort_dynamic", "p50_ms": 7.2})  # four fifths: the student would take 0.8
    store.write_json(tmp_path / "rows.json", rows)
    assert diagnose._milliseconds(stages, "qad")[0]["int8"] == pytest.approx({k: v / 2 for k, v in own.items()})
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
            eight = dataclasses.replace(quant, mixed={name: "u8s8_dynamic"})
            expected = shape.file_bytes(parts, eight)[1] - shape.file_bytes(parts, quant)[1]
            found = diagnose._more_bytes(PLAIN.get_submodule(name), quant.scheme, quant.block, "u8s8_dynamic")
            assert found == expected


def test_what_is_printed_tells_products_and_what_more_bits_would_cost(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"layer": "a", "scheme": "float", "kl": 1e-3, "share": 0.6, "bytes": 4096, "ms": 0.25}
    ranked = {"alone": 0.01, "won_back": 0.02}
    product = "a.self.MatMul_1"
    found = {
        "kind": "qad",
        "untrained": False,
        "scheme": "w4_block",
        "examples": 8,
        "kl": 0.01,
        "layers": [{"layer": "a", "sqnr_db": 20.0, **ranked}],
        "quantizers": [{"quantizer": "a.weight", "layers": ["a"], **ranked}],
        "keep_float": [row],
        "mixed": [row | {"scheme": "u8s7_static", "bytes": 1024, "ms": 0.125}],
        "products": {
            "kl": 0.5,
            "layers": [{"layer": product, **ranked}],
            "quantizers": [{"quantizer": f"{product}: values", "layers": [product], **ranked}],
            "keep_float": [row | {"layer": product, "bytes": 0, "ms": None}],
        },
        "ms_from": "the bench",
        "line": "the line",
        "mixed_line": "the other line",
    }
    diagnosis._print(found)
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert ["a", "0.001", "60%", "+4,096", "+0.2500"] in rows
    assert [product, "0.001", "60%", "+0", "unknown"] in rows
    assert ["a", "u8s7_static", "0.001", "60%", "+1,024", "+0.1250"] in rows
    assert [f"{product}:", "values", "0.01", "0.02"] in rows and said.endswith("the other line\n")
    assert "next to nothing" not in said and said.startswith("QAD, w4_block, 8 ")
    diagnosis._print(found | {"kl": 5e-5, "untrained": True})
    said = capsys.readouterr().out
    assert "is 5e-05 nats, next to nothing" in said and said.startswith("PTQ, which no epoch under quantization bett")
    diagnosis._print(found | {"products": None, "keep_float": []})
    assert product not in capsys.readouterr().out
