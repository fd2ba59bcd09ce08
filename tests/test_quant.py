"""Claims about calibration and fake-quantization, against references written in float64."""

from __future__ import annotations

import copy
import functools
import gc
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from brevitas.nn import QuantEmbedding
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator

from edgekd import spec
from edgekd.distill import loop
from edgekd.distill.learner import Learner
from edgekd.errors import DataError, TargetError, TrainingError
from edgekd.progress import Progress
from edgekd.quant import calibrate, observe, replace
from edgekd.quant.quantizers import act_parameters
from edgekd.stages import quantize as stage
from edgekd.stages.quantize import observation_steps
from edgekd.store import Context

KEEP = ("classifier",)


def quantized(scheme: str = "u8s8_static", keep: tuple[str, ...] = KEEP, seed: int = 0, **changes: int):  # type: ignore[no-untyped-def]
    model = tiny.bert(seed, **changes)
    ids = torch.tensor([[2, 40, 50, 3]])
    return replace.quantize(model, scheme, keep, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


DYNAMIC = quantized("u8s8_dynamic")
DYNAMIC_QUANTIZE = ReferenceEvaluator(
    onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[] x) => (uint8[] q, float s, uint8 z) '
        "{ q, s, z = DynamicQuantizeLinear(x) }"
    )
)


def peak_bytes(action: Callable[[], object]) -> int:
    """The most memory that this process had resident during ``action``."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    action()
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def values(seed: int, count: int = 5000) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(count, generator=rng), torch.randn(20, generator=rng) * 10])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 400), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_a_histogram_does_not_depend_on_how_the_stream_was_cut(seed: int, sizes: list[int], scale: float) -> None:
    x = values(seed) * scale
    whole, parts = observe.Histogram(), observe.Histogram()
    whole.observe(x)
    place = 0
    for size in [*sizes, len(x)]:
        parts.observe(x[place : place + size])
        place += size
    assert torch.equal(whole.counts, parts.counts)
    assert (whole.low, whole.high, whole.limit) == (parts.low, parts.high, parts.limit)
    assert whole.counts.sum() == len(x)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_ranges_agree_with_numpy_to_a_bin(percentile: float) -> None:
    x = values(1, 200_000)
    histogram = observe.Histogram()
    for part in x.split(1000):
        histogram.observe(part)
    low, high = observe.choose(histogram, "percentile", percentile, signed=False)
    tail = (100 - percentile) / 2
    expected = np.percentile(x.double().numpy(), [tail, 100 - tail], method="inverted_cdf")
    assert [low, high] == pytest.approx(expected.tolist(), abs=2 * histogram.limit / observe.BINS)


@pytest.mark.parametrize("signed", [False, True])
def test_mse_ranges_agree_with_a_float64_search_on_the_values_themselves(signed: bool) -> None:
    x = values(2, 20_000)
    histogram = observe.Histogram()
    histogram.observe(x)
    low, high = observe.choose(histogram, "mse", 99.9, signed)
    full = (float(x.min()), float(x.max()))
    if signed:
        full = (-max(-full[0], full[1]), max(-full[0], full[1]))

    def error(share: float) -> float:
        scale = share * (full[1] - full[0]) / 255
        zero = round(-full[0] * share / scale)
        y = x.double().numpy()
        return float(((np.clip(np.round(y / scale) + zero, 0, 255) - zero) * scale - y).__pow__(2).mean())

    best = min(error(s) for s in np.linspace(0.01, 1.0, 200))
    assert error(high / full[1]) <= 1.02 * best
    assert low < 0 < high and high < full[1]


@pytest.mark.parametrize("signed", [False, True])
def test_entropy_ranges_agree_with_a_float64_reference_on_the_same_stream(signed: bool) -> None:
    x = torch.cat([values(3, 20_000), torch.randn(2_000) * 2 + 1])
    histogram = observe.Histogram()
    for part in x.split(500):
        histogram.observe(part)
    found = observe.choose(histogram, "entropy", 99.9, signed)

    counts, edges = np.histogram(x.double().numpy(), observe.BINS, (-histogram.limit, histogram.limit))
    centres = (edges[:-1] + edges[1:]) / 2
    low, high = float(x.min()), float(x.max())
    if signed:
        low, high = -max(-low, high), max(-low, high)

    def divergence(share: float) -> float:
        scale = share * (high - low) / 255
        zero = round(-low * share / scale)
        inside = [i for i in np.flatnonzero(counts) if low * share <= centres[i] <= high * share]
        p = counts[inside].astype(float)
        p[0] += counts[: inside[0]].sum()
        p[-1] += counts[inside[-1] + 1 :].sum()
        levels: dict[int, list[int]] = {}
        for i in inside:
            levels.setdefault(min(max(round(centres[i] / scale) + zero, 0), 255), []).append(i)
        q = np.concatenate([np.full(len(bins), counts[bins].mean()) for bins in levels.values()])
        p, q = p / p.sum(), q / q.sum()
        return float((p * np.log(p / q)).sum())

    shares = [s / 100 for s in range(100, 0, -1) if s / 100 * (high - low) >= 256 * (edges[1] - edges[0])]
    best = min(shares, key=divergence)
    assert best < 0.9 and found == pytest.approx((low * best, high * best))


@pytest.mark.parametrize("method", ["mse", "percentile", "minmax", "entropy"])
@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static"])
def test_fake_quantized_activations_stand_on_the_grid_that_calibration_set(method: str, scheme: str) -> None:
    model = quantized(scheme)
    tokens = tiny.tokens(tiny.split(30, 0))
    ranges = calibrate.calibrate(
        model, spec.Quant(calibration="x", method=method, scheme=scheme), tokens, np.arange(30)
    )  # type: ignore[arg-type]
    name, proxy = next(iter(replace.act_quantizers(model).items()))
    low, high = ranges[name]
    x = torch.linspace(2 * low, 2 * high, 1001)
    got = proxy(x).detach().double().numpy()
    if scheme == "u8s8_static":
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        grid = (np.clip(np.round(x.double().numpy() / scale) + zero, 0, 255) - zero) * scale
    else:
        scale = high / 128
        grid = np.clip(np.round(x.double().numpy() / scale), -128, 127) * scale
    assert np.abs(got - grid).max() <= scale * 1.001  # float32 may round a tie the other way
    assert (np.abs(got - grid) > scale * 0.01).mean() < 0.01


@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static"])
def test_activations_are_quantized_in_training_as_in_evaluation_and_gradients_pass_only_inside(scheme: str) -> None:
    proxy = next(iter(replace.act_quantizers(quantized(scheme)).values()))
    scale, shift = act_parameters(proxy)
    for largest in (3.0, 5.0):  # changed ranges are noticed
        scale.fill_(largest)
        low = -128 / 128 * largest
        if shift is not None:
            shift.fill_(1.0)
            low = -round(255 / largest) * largest / 255
        high = low + 255 * largest / (128 if shift is None else 255)
        x = torch.linspace(-8, 8, 4001).requires_grad_()
        y = proxy.train()(x)
        torch.testing.assert_close(y, proxy.eval()(x), rtol=0, atol=1e-6)
        y.sum().backward()
        assert x.grad is not None and set(x.grad.tolist()) == {0.0, 1.0}
        passed = x.detach()[x.grad == 1]
        step = (high - low) / 255
        assert abs(passed.min() - (low - step / 2)) < 0.005 and abs(passed.max() - (high + step / 2)) < 0.005


@pytest.mark.parametrize("scheme", ["u8s8_static", "u8s7_static", "s8s8_static", "w4_block"])
def test_weights_are_quantized_in_training_as_in_evaluation_and_every_gradient_passes(scheme: str) -> None:
    model = quantized(scheme)
    for layer in (model.bert.encoder.layer[0].intermediate.dense, model.bert.embeddings.word_embeddings):
        weight = layer.weight.detach().clone().requires_grad_()
        y = layer.weight_quant.train()(weight)
        torch.testing.assert_close(y, layer.weight_quant.eval()(weight), rtol=0, atol=1e-7)
        assert (y - weight).abs().max() > 0
        y.sum().backward()
        assert weight.grad is not None and (weight.grad == 1).all()


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(-1e3, 1e3, width=32)))
def test_dynamic_activations_are_quantized_as_the_onnx_operator_does(x: np.ndarray) -> None:
    proxy = DYNAMIC.bert.pooler.dense.input_quant
    quantized, scale, zero = DYNAMIC_QUANTIZE.run(None, {"x": x})
    got = proxy(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, (quantized.astype(np.float32) - zero) * scale, rtol=1e-5, atol=1e-30)


def test_dynamic_activations_need_no_calibration_and_let_gradients_through() -> None:
    model = quantized("u8s8_dynamic").train()
    assert replace.act_quantizers(model) == {}
    ids = torch.tensor([[2, 40, 50, 3]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    assert model.bert.embeddings.LayerNorm.weight.grad.abs().sum() > 0


def test_query_key_and_value_share_one_quantizer() -> None:
    model = quantized()
    layer = model.bert.encoder.layer[0].attention.self
    assert layer.query.input_quant is layer.key.input_quant is layer.value.input_quant
    assert len(replace.act_quantizers(model)) == 4 * 4 + 1


class Twice(torch.nn.Module):
    """What DeBERTa does: it reads a table's weight past its forward, and gives it to a layer that has been called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.table = torch.nn.Embedding(100, 4), torch.nn.Embedding(6, 4)
        self.once, self.twice = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids)
        return self.once(x).sum() + self.twice(x).sum() + self.twice(10 * self.table.weight).sum()


def twice() -> Twice:
    ids = torch.tensor([[2, 40, 50, 3]])
    model: Twice = replace.quantize(Twice(), "u8s8_static", (), {"input_ids": ids, "attention_mask": ids})
    return model


def test_a_table_that_the_model_reads_itself_is_quantized_too_and_still_learns() -> None:
    model, float_table = twice(), Twice().table.weight.detach().double()
    scale = float_table.abs().max() / 127
    torch.testing.assert_close(model.table.weight.detach().double(), (float_table / scale).round() * scale)
    assert torch.equal(model.table(torch.tensor([4, 1])), model.table.weight[[4, 1]])
    model.table.weight.square().sum().backward()
    assert model.table.rows.weight.grad.abs().sum() > 0


def test_a_quantizer_that_is_shared_covers_all_that_any_of_its_layers_is_given() -> None:
    model, tokens = twice(), tiny.tokens(tiny.split(8, 0))
    assert model.once.input_quant is model.twice.input_quant
    found = calibrate.calibrate(model, spec.Quant(calibration="x", method="minmax"), tokens, np.arange(8))
    seen = torch.cat([model.words(torch.from_numpy(tokens.ids).long()), 10 * model.table.weight]).detach()
    assert found["once"] == pytest.approx((float(seen.min()), float(seen.max())))
    assert seen.max() == 10 * model.table.weight.max()


@pytest.mark.parametrize("scales", ["statistics", "learned"])
def test_what_query_key_and_value_share_is_quantized_once_and_learns_as_if_three_times(scales: str) -> None:
    ids = torch.tensor([[2, 40, 50, 3], [2, 41, 52, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = replace.quantize(tiny.bert(0), "u8s8_static", ("classifier",), inputs, learned=scales == "learned")
    tokens = tiny.tokens(tiny.split(30, 0))
    calibrate.calibrate(model, spec.Quant(calibration="x", scales=scales), tokens, np.arange(30))
    quantizers = [p.fused_activation_quant_proxy.tensor_quant for p in replace.act_quantizers(model.train()).values()]
    shared = [True, False, False, False] * 4 + [False]  # of each layer, and the pooler's
    assert [quantizer.shared for quantizer in quantizers] == shared
    found = []
    for sharing in (True, False, True):  # nothing of the first time comes back the second
        torch.manual_seed(0)  # dropout
        for quantizer, own in zip(quantizers, shared, strict=True):
            quantizer.shared = own and sharing
        model.zero_grad()
        logits = model(**inputs).logits
        logits[:, 0].square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert [quantizer._last is not None for quantizer in copy.deepcopy(quantizers)] == [False] * 17
    assert [quantizer._last is not None for quantizer in quantizers] == shared
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)


@pytest.mark.parametrize(("scheme", "most"), [("u8s8_static", 127), ("u8s7_static", 63), ("s8s8_static", 127)])
def test_weights_are_integers_per_channel_and_symmetric(scheme: str, most: int) -> None:
    layer = quantized(scheme).bert.encoder.layer[0].intermediate.dense
    layer.weight_quant.skip_create_quant_tensor = False
    weight = layer.quant_weight()
    integers = weight.int()
    assert integers.abs().max() == most and (weight.zero_point == 0).all()
    expected = layer.weight.abs().amax(1, keepdim=True) / most
    torch.testing.assert_close(weight.scale, expected)
    torch.testing.assert_close((integers * expected).float(), weight.value)


def test_kept_modules_stay_float_and_everything_else_does_not() -> None:
    model = quantized(keep=("classifier", "*.attention.*"))
    names = {n: type(m).__name__ for n, m in model.named_modules()}
    assert names["classifier"] == names["bert.encoder.layer.1.attention.self.key"] == "Linear"
    assert names["bert.pooler.dense"] == "QuantLinear"
    assert names["bert.embeddings.word_embeddings"] == "Lookup"


def test_a_recipe_that_quantizes_nothing_is_an_error() -> None:
    with pytest.raises(TargetError, match="quantizes nothing"):
        quantized(keep=("*",))


@pytest.mark.parametrize(
    ("config", "layer", "keep"),
    [
        ({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}, "transformer.h.0.attn.c_attn",
         "transformer.h.*"),
        ({"model_type": "deberta-v2", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
          "conv_kernel_size": 3}, "deberta.encoder.conv.conv", "deberta.encoder.conv"),
    ],
    ids=["gpt2", "deberta-v2"],
)  # fmt: skip
def test_a_family_with_layers_that_no_scheme_quantizes_is_refused_by_name_before_training(
    config: dict[str, object], layer: str, keep: str
) -> None:
    student = spec.Student(config=config)
    with pytest.raises(TargetError, match=f"{layer} of .*which no scheme quantizes"):
        stage.check(student, spec.Quant(calibration="x", keep_float=KEEP))
    stage.check(student, spec.Quant(calibration="x", keep_float=(keep,)))


@pytest.mark.parametrize(
    "glob",
    ["clasifier", "*.attention.slf.MatMul*", "*.self.MatMull*", "*Softmax*", "*.Conv*", "bert.pooler.dense.MatMul"],
)
def test_a_glob_that_can_keep_nothing_in_float_is_refused_before_training(glob: str) -> None:
    with pytest.raises(TargetError, match=f"keep_float: '{re.escape(glob)}' matches no module of the student"):
        quantized(keep=("classifier", glob))


def test_a_glob_over_nodes_is_left_for_the_graph_to_answer() -> None:
    assert quantized(keep=("classifier", "*.attention.self.MatMul*", "*MatMul*"))


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("value", "method"),
    [(0.0, "mse"), (0.0, "percentile"), (float("inf"), "mse"), (float("nan"), "minmax"), (LOWEST, "percentile")],
)
def test_a_range_that_cannot_be_quantized_names_its_tensor(value: float, method: str) -> None:
    model = quantized()
    norm = model.bert.encoder.layer[0].attention.output.LayerNorm  # what layer 0's intermediate.dense reads
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()
        norm.bias[0] = value
    with pytest.raises(TrainingError, match=r"input of bert\.encoder\.layer\.0\.intermediate\.dense has .*keep_float"):
        quant = spec.Quant(calibration="x", method=method)  # type: ignore[arg-type]
        calibrate.calibrate(model, quant, tiny.tokens(tiny.split(8, 0)), np.arange(8))


@given(st.integers(1, 400), st.floats(0, 1))
def test_ranges_are_observed_at_even_distances_and_never_after_they_are_frozen(last: int, frozen: float) -> None:
    steps = observation_steps(spec.Quant(frozen_fraction=frozen), last)
    assert list(steps) == sorted(set(steps)) and len(steps) <= 4
    assert all(0 < step <= (1 - frozen) * last and step < last for step in steps)
    if steps and frozen > 0 and len(steps) == 4:
        assert steps[-1] == int((1 - frozen) * last) and max(np.diff([0, *steps])) - min(np.diff([0, *steps])) <= 1


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 0.99))
def test_ranges_are_observed_from_where_activations_begin_and_but_once_where_they_are_learned(
    last: int, frozen: float, first: float
) -> None:
    begin = int(first * last)
    learned = observation_steps(spec.Quant(frozen_fraction=frozen, weights_first=first, scales="learned"), last)
    assert learned == ((begin,) if begin else ())
    steps = observation_steps(spec.Quant(frozen_fraction=frozen, weights_first=first), last)
    assert steps[:1] == learned or not begin
    assert all(begin <= step < last and step <= max(begin, (1 - frozen) * last) for step in steps)


def test_activations_stay_in_float_while_weights_come_first_but_not_where_the_student_is_judged(tmp_path: Path) -> None:
    model = quantized()
    data, seen = tiny.tokens(tiny.split(32, 0)), []
    quant = spec.Quant(weights_first=0.5, epochs=2, optimizer=spec.Optimizer(batch_size=8))
    observe = functools.partial(calibrate.calibrate, model, quant, data, np.arange(8))
    observe()
    proxies = replace.act_quantizers(model).values()

    def judge() -> dict[str, float]:
        assert not any(proxy.disable_quant for proxy in proxies)
        return {"score": 0.5}

    learner = Learner(model, (spec.CE(),), None)
    learner.register_forward_pre_hook(lambda *_: seen.append([proxy.disable_quant for proxy in proxies]))
    context = Context(tmp_path, "cpu", 1, Progress(quiet=True))
    stage.train(context, loop.Task("t", learner, data, None, judge), quant, 0, observe)
    assert [all(off) for off in seen] == [any(off) for off in seen] == [True] * 4 + [False] * 4


def test_ramps_stay_under_quantization_where_the_training_in_fp32_left_them(tmp_path: Path) -> None:
    data, tried = tiny.tokens(tiny.split(32, 0)), []
    quant = spec.Quant(epochs=1, optimizer=spec.Optimizer(batch_size=8))
    for weight in (spec.Ramp(4.0, 0.5), 0.5):
        model = quantized()
        observe = functools.partial(calibrate.calibrate, model, quant, data, np.arange(8))
        observe()
        lesson = loop.Task("t", Learner(model, (spec.CE(weight=weight),), None), data, None, lambda: {"score": 0.5})
        (tmp_path / str(weight)).mkdir()
        stage.train(Context(tmp_path / str(weight), "cpu", 1, Progress(quiet=True)), lesson, quant, 0, observe)
        tried.append(model.state_dict())
    assert all(torch.equal(one, tried[1][name]) for name, one in tried[0].items())


def test_padding_is_not_observed() -> None:
    model, tokens = quantized(), tiny.tokens(tiny.split(32, 0))
    quant = spec.Quant(calibration="x", method="minmax")
    order = np.argsort(tokens.lengths)
    mixed = np.concatenate([order[:16:2], order[-16::2], order[1:16:2], order[-15::2]])
    by_length = calibrate.calibrate(model, quant, tokens, order[[*range(16), *range(-16, 0)]])
    ragged = calibrate.calibrate(model, quant, tokens, mixed)
    for name, bounds in by_length.items():
        assert ragged[name] == pytest.approx(bounds, rel=2e-2), name


def test_what_holds_one_row_an_example_is_not_taken_for_tokens_where_it_is_as_wide_as_they_are_many() -> None:
    model, tokens = quantized(hidden_size=12), tiny.tokens(tiny.split(48, 0))
    rows = np.flatnonzero(tokens.lengths <= 12)[-calibrate.BATCH :]
    assert tokens.lengths[rows].max() == 12 > tokens.lengths[rows].min()
    found = calibrate.observe(model, calibrate.batches(tokens, rows))
    assert found["bert.pooler.dense"].counts.sum() == 12 * len(rows)
    assert found["bert.encoder.layer.0.intermediate.dense"].counts.sum() == 12 * tokens.lengths[rows].sum()


def test_calibration_memory_does_not_grow_with_the_examples() -> None:
    model, tokens = quantized(), tiny.tokens(tiny.split(4096, 0))
    few, many = (
        peak_bytes(functools.partial(calibrate.calibrate, model, spec.Quant(calibration="x"), tokens, np.arange(count)))
        for count in (32, 4096)
    )
    assert many - few < 50 * 2**20


def test_a_state_dict_carries_every_scale() -> None:
    model, tokens = quantized(), tiny.tokens(tiny.split(16, 0))
    calibrate.calibrate(model, spec.Quant(calibration="x"), tokens, np.arange(16))
    other = quantized(seed=1)
    other.load_state_dict(model.state_dict())
    assert calibrate.ranges(other) == calibrate.ranges(model)
    given = {"input_ids": torch.tensor([[2, 40, 50, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(other(**given).logits, model(**given).logits)


@pytest.mark.parametrize("scheme", ["u8s8_static", "u8s8_dynamic"])
def test_rows_looked_up_in_training_are_those_of_the_whole_table_quantized_to_the_bit(scheme: str) -> None:
    table = quantized(scheme).train().bert.embeddings.word_embeddings
    ids = torch.tensor([[2, 40, 40, 3], [2, table.padding_idx, 7, table.padding_idx]])
    sent_back = torch.randn(2, 4, table.embedding_dim)
    found = []
    for forward in (type(table).forward, QuantEmbedding.forward):
        table.weight.grad = None
        rows = forward(table, ids)
        rows.backward(sent_back)
        found.append((rows.detach(), table.weight.grad))
    assert all(map(torch.equal, *found)) and not torch.equal(found[0][0], table.weight[ids])
    every = torch.arange(table.num_embeddings)
    assert torch.equal(table(every), table.eval()(every))


def test_scales_are_not_trained_by_gradient_but_weights_are() -> None:
    model = quantized().train()
    calibrate.calibrate(model, spec.Quant(calibration="x"), tiny.tokens(tiny.split(8, 0)), np.arange(8))
    ids = torch.tensor([[2, 40, 50, 3]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    assert all(p is None or p.grad is None for q in replace.act_quantizers(model).values() for p in act_parameters(q))
    assert model.bert.encoder.layer[0].attention.self.key.weight.grad.abs().sum() > 0
    assert model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_a_calibration_id_outside_the_training_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"'test/3' \(1 in all\) is not in the training split"):
        calibrate.calibration_rows(("train/1", "test/3"), ["train/0", "train/1"])
    assert calibrate.calibration_rows(("train/1", "train/9"), ["train/0", "train/1"], everything=False).tolist() == [1]


def test_calibration_shows_how_far_it_is() -> None:
    bars = tiny.Bars()
    calibrate.calibrate(quantized(), spec.Quant(calibration="x"), tiny.tokens(tiny.split(40, 0)), np.arange(40), bars)
    assert bars.total == bars.done == {"calibration": 40}
