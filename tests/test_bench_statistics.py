"""The statistics against scipy, against closed forms, and against simulated machines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekd.bench import rows, statistics
from edgekd.bench.rows import Cell
from edgekd.tasks.text_classification import score

times = st.floats(1e-3, 1e4)
rounds = st.integers(2, 12).flatmap(
    lambda n: st.tuples(st.lists(times, min_size=n, max_size=n), st.lists(times, min_size=n, max_size=n))
)
logits = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-1e4, 1e4))

# ------------------------------------------------------------------------------------------------------ Student's t


@given(st.integers(1, 400), st.floats(0.5, 0.9999))
def test_the_quantile_of_students_t_is_scipys(degrees, probability):
    expected = scipy.stats.t.ppf(probability, degrees)
    assert statistics.student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0.975, 0), (1.0, 3), (0.3, 3), (float("nan"), 3)])
def test_a_quantile_that_does_not_exist_is_an_error(probability, degrees):
    with pytest.raises(ValueError, match="no quantile"):
        statistics.student_quantile(probability, degrees)


# ---------------------------------------------------------------------------------------------------------- ratios


@given(rounds)
def test_the_interval_is_scipys_on_the_logarithms_widened_to_hold_the_median(pair):
    baseline, own = map(np.array, pair)
    logs = np.log(baseline / own)
    found = statistics.speedup(baseline, own)
    assert found.value == pytest.approx(np.median(baseline / own) if len(logs) % 2 else math.exp(np.median(logs)))
    assert found.low <= found.value <= found.high
    if np.ptp(logs) > 1e-9:
        low, high = scipy.stats.t.interval(0.95, len(logs) - 1, loc=logs.mean(), scale=scipy.stats.sem(logs))
        assert math.log(found.low) == pytest.approx(min(low, np.median(logs)), abs=1e-6)
        assert math.log(found.high) == pytest.approx(max(high, np.median(logs)), abs=1e-6)


@given(rounds)
def test_the_inverse_ratio_leads_to_the_inverse_interval(pair):
    there, back = statistics.speedup(*pair), statistics.speedup(*pair[::-1])
    assert (back.value, back.low, back.high) == pytest.approx((1 / there.value, 1 / there.high, 1 / there.low))


@given(rounds, st.floats(0.1, 10))
def test_a_ratio_does_not_depend_on_the_unit(pair, factor):
    plain = statistics.speedup(*pair)
    scaled = statistics.speedup(*[[value * factor for value in side] for side in pair])
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value, plain.low, plain.high))


@given(st.lists(times, min_size=3, max_size=9), st.floats(1.1, 50))
def test_a_drift_that_both_share_does_not_widen_the_interval(drift, factor):
    found = statistics.speedup([value * factor for value in drift], drift)
    assert (found.value, found.low, found.high) == pytest.approx((factor, factor, factor))


def test_a_median_of_one_round_has_no_interval():
    assert statistics.speedup([3.0], [1.5]) == statistics.Ratio(pytest.approx(2.0), None, None)
    assert statistics.verdict(None, None) == "unknown"


@pytest.mark.parametrize("pair", [([], []), ([1.0, 2.0], [1.0])])
def test_rounds_that_do_not_pair_are_an_error(pair):
    with pytest.raises(ValueError, match="paired"):
        statistics.speedup(*pair)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.02, 1.4, "faster"),
        (1.005, 1.4, "same"),
        (0.9, 1.1, "same"),
        (0.6, 0.995, "same"),
        (0.6, 0.98, "slower"),
        (1.0, 1.0, "same"),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_margin(low, high, expected):
    assert statistics.verdict(low, high) == expected


@given(st.floats(0.1, 10), st.floats(1, 3))
def test_faster_the_one_way_is_slower_the_other_way(low, width):
    opposite = {"faster": "slower", "slower": "faster", "same": "same"}
    assert statistics.verdict(1 / (low * width), 1 / low) == opposite[statistics.verdict(low, low * width)]


def simulate(machine: np.random.Generator, *, slowdown: float, noise: float, drift: float, walk: float, spikes: float):
    """Five rounds of five artifacts as the harness orders them; the first and the last differ by ``slowdown`` alone.

    Every process has a level of its own (``noise``), the machine drifts in one direction (up to ``drift`` in all) and
    wanders (``walk`` a round), and now and then a whole process is disturbed by up to 30%.
    """
    number, artifacts = 5, 5
    steps = np.arange(number * artifacts) / (number * artifacts)
    level = machine.uniform(-drift, drift) * steps + machine.normal(0, walk / artifacts**0.5, steps.size).cumsum()
    found = np.empty((number, artifacts))
    for turn in range(number):
        order = range(artifacts) if turn % 2 == 0 else reversed(range(artifacts))
        for place, artifact in enumerate(order):
            extra = machine.normal(0, noise) + (machine.random() < spikes) * machine.uniform(0, 0.3)
            found[turn, artifact] = math.exp(level[turn * artifacts + place] + extra)
    found[:, -1] *= slowdown
    ratio = statistics.speedup(found[:, 0], found[:, -1])
    return statistics.verdict(ratio.low, ratio.high)


@pytest.mark.parametrize(
    "kind",
    [
        {"noise": 0.002, "drift": 0.0, "walk": 0.0, "spikes": 0.0},
        {"noise": 0.02, "drift": 0.1, "walk": 0.01, "spikes": 0.0},
        {"noise": 0.01, "drift": 0.3, "walk": 0.03, "spikes": 0.05},
        {"noise": 0.05, "drift": 0.1, "walk": 0.01, "spikes": 0.1},
    ],
)
def test_a_model_against_itself_is_the_same_at_least_19_times_in_20(kind):
    machine = np.random.default_rng(0)
    verdicts = [simulate(machine, slowdown=1.0, **kind) for _ in range(600)]
    assert verdicts.count("same") >= 0.95 * len(verdicts)


def test_five_percent_slower_is_seen_at_least_19_times_in_20_on_a_quiet_machine():
    machine = np.random.default_rng(0)
    kind = {"noise": 0.006, "drift": 0.1, "walk": 0.005, "spikes": 0.0}
    verdicts = [simulate(machine, slowdown=1.05, **kind) for _ in range(600)]
    assert verdicts.count("slower") >= 0.95 * len(verdicts)


@given(st.lists(times, min_size=5, max_size=9), st.floats(2, 100))
def test_one_wild_round_does_not_change_the_spread_much(values, factor):
    steady = [1.0] * len(values)
    assert statistics.spread(steady) == 0
    assert statistics.spread([*steady[1:], factor]) == 0


# ------------------------------------------------------------------------------------------------- what a model answers


@given(logits)
def test_log_softmax_is_scipys(values):
    np.testing.assert_allclose(
        statistics.log_softmax(values), scipy.special.log_softmax(values, axis=-1), rtol=1e-9, atol=1e-9
    )


@given(logits, st.floats(-1e4, 1e4))
def test_kl_is_scipys_and_blind_to_a_shift_of_the_logits(values, shift):
    other = values[::-1] * 0.7
    p, q = (scipy.special.softmax(side, axis=-1) for side in (values, other))
    if (q > 0).all():
        expected = scipy.special.rel_entr(p, q).sum(axis=-1).mean()
        assert statistics.kl(values, other) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert statistics.kl(values, values + shift) == pytest.approx(0, abs=1e-6)
    assert statistics.kl(values, other) >= -1e-9


def test_kl_of_extreme_logits_is_finite():
    sure, opposite = np.array([[1e4, -1e4]], np.float32), np.array([[-1e4, 1e4]], np.float32)
    assert statistics.kl(sure, opposite) == pytest.approx(2e4)


def test_agreement_counts_first_places():
    found = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    assert statistics.agreement(found, -found) == 0.0
    assert statistics.agreement(found, found * 3 + 1) == 1.0


# ---------------------------------------------------------------------------------------------------------- validity

GOOD = {"p50_ms": 1.0, "null_ms": 0.001, "stolen": 0.0, "neighbours": 0.0, "settled": True, "busy_threads": 1}
CELL = Cell("ort_cpu", 1, "real")
REFERENCE = ("teacher", "ort_cpu")


def test_five_good_rounds_are_valid():
    assert rows.why_invalid(CELL, 200, [GOOD] * 5) is None


@pytest.mark.parametrize("change", [{"stolen": 0.5}, {"neighbours": 0.5}, {"settled": False}, {"p50_ms": 9.0}])
def test_one_disturbed_round_in_five_is_borne_and_two_are_not(change):
    assert rows.why_invalid(CELL, 200, [{**GOOD, **change}] + [GOOD] * 4) is None
    assert rows.why_invalid(CELL, 200, [{**GOOD, **change}] * 2 + [GOOD] * 3) is not None


@pytest.mark.parametrize(
    ("calls", "found", "reason"),
    [
        (99, [GOOD] * 5, "99 calls a round, 100 needed"),
        (200, [GOOD] * 4, "4 rounds, 5 needed"),
        (200, [{**GOOD, "null_ms": 0.06}] * 5, "harness itself takes 6% of p50"),
        (200, [{**GOOD, "stolen": 0.2}] * 5, "other processes took 20% of the CPU time in 5 of 5 rounds"),
        (200, [{**GOOD, "neighbours": 0.4}] * 5, "kept busy 40% of the machine's CPUs in 5 of 5 rounds"),
        (200, [{**GOOD, "settled": False}] * 5, "still getting faster"),
        (200, [{**GOOD, "busy_threads": 3}] + [GOOD] * 4, "3 threads worked, 1 asked for"),
        (200, [{**GOOD, "p50_ms": p50} for p50 in (1, 1.2, 1.4, 1.6, 1.8)], "quartiles of the rounds' p50"),
    ],
)
def test_what_is_wrong_with_a_measurement_is_said(calls, found, reason):
    assert reason in rows.why_invalid(CELL, calls, found)


def test_every_reason_is_said_and_not_the_first_alone():
    assert rows.why_invalid(CELL, 3, [GOOD]).count(";") == 1


def _row(artifact: str, p50: list[float], valid: bool = True) -> dict:
    blank = rows.empty(artifact, CELL, 2**20, "")
    return {**blank, "round_p50_ms": p50, "valid": valid, "why_invalid": None if valid else "noise"}


def test_a_row_whose_teacher_is_invalid_is_invalid_too():
    table = [_row("teacher_fp32", [4.0] * 5, valid=False), _row("student", [1.0] * 5)]
    rows.compare(table, "teacher_fp32")
    assert table[1]["speedup_vs_teacher"] == 4.0
    assert not table[1]["valid"] and table[1]["why_invalid"] == "teacher_fp32 is INVALID: noise"


def test_without_a_teacher_there_is_no_ratio_and_the_row_stays_valid():
    table = [rows.empty("teacher_fp32", CELL, None, "crashed"), _row("student", [1.0] * 5)]
    rows.compare(table, "teacher_fp32")
    assert table[1]["speedup_vs_teacher"] is None and table[1]["valid"]


def test_logits_that_are_not_finite_make_a_row_invalid():
    table = [_row("student", [1.0] * 5)]
    found = np.array([[np.nan, 1.0], [0.0, 1.0]], np.float32)
    rows.add_scores(table, {("student", "ort_cpu", 1): found}, {"student": np.array([1, 1])}, REFERENCE, score)
    assert not table[0]["valid"] and "not finite" in table[0]["why_invalid"] and table[0]["kl"] is None


def test_a_score_is_the_files_in_its_own_runtime_whatever_was_timed():
    cells = [("ort_cpu", 1, "real"), ("ort_cpu", 1, "fixed16"), ("ort_cpu", 2, "fixed16"), ("ort_cpu", 4, "fixed16")]
    cells.append(("openvino", 1, "fixed64"))  # which left no logits
    table = [{**_row("student", [1.0]), **dict(zip(("runtime", "threads", "workload"), c, strict=True))} for c in cells]
    table.append(rows.empty("student", Cell("ort_cpu", 4, "real"), 2**20, "4 threads asked for"))
    right, half = (np.array([[0, 1], found], np.float32) for found in ([0, 1], [1, 0]))
    logits = {("student", "ort_cpu", 1): right, ("student", "ort_cpu", 2): half, (*REFERENCE, 1): right}
    rows.add_scores(table, logits, {"student": np.array([1, 1])}, REFERENCE, score)
    assert [row["score"] for row in table] == [1.0, 1.0, 0.5, 1.0, None, None]
    assert [row["agreement"] for row in table] == [1.0, 1.0, 0.5, 1.0, None, None]
    assert [row["kl"] is not None for row in table] == [True, True, True, True, False, False]


def test_every_runtime_is_compared_with_the_same_artifact_in_onnxruntime_and_with_the_teacher_there():
    places = [("teacher", "ort_cpu"), ("teacher", "litert"), ("student", "ort_cpu"), ("student", "litert")]
    table = [{**_row(name, [1.0]), "runtime": runtime, "workload": "real"} for name, runtime in places]
    table.append({**_row("student", [1.0]), "runtime": "openvino", "workload": "fixed64"})  # never scored there
    answers = {"teacher ort_cpu": 0b0000, "teacher litert": 0b0001, "student ort_cpu": 0b0011, "student litert": 0b0111}
    told = {key: np.eye(2, dtype=np.float32)[[bits >> i & 1 for i in range(4)]] for key, bits in answers.items()}
    logits = {(name, runtime, 1): told[f"{name} {runtime}"] for name, runtime in places}
    rows.add_scores(table, logits, dict.fromkeys(("teacher", "student"), np.zeros(4, np.int64)), REFERENCE, score)
    assert [row["agreement"] for row in table] == [1.0, 0.75, 0.5, 0.25, None]
    assert [row["agreement_onnx"] for row in table] == [None, 0.75, None, 0.75, None]
