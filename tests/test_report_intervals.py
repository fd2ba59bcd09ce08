from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgekd.report import intervals

COUNTS = st.integers(0, 40)


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, first, second, neither])
    b = np.repeat([True, False, True, False], [both, first, second, neither])
    return a, b


@given(COUNTS, COUNTS)
def test_mcnemar_is_the_exact_binomial_test_on_discordant_pairs(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert intervals.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 3000), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert intervals.wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_paired_interval_is_the_adjusted_wald_of_the_discordant_pairs(
    both: int, first: int, second: int, neither: int
) -> None:
    n = both + first + second + neither
    if n == 0:
        return
    found = intervals.paired_difference(*pairs(both, first, second, neither))
    # the variance of the mean of +1 / 0 / -1 scores, with one discordant pair of each kind added (Bonett & Price 2012)
    scores = np.concatenate([np.ones(first + 1), -np.ones(second + 1), np.zeros(both + neither)])
    half = stats.norm.ppf(0.975) * scores.std() / np.sqrt(n + 2)
    assert found["difference"] == pytest.approx((first - second) / n)
    assert found["low"] == pytest.approx(max(-1, min(scores.mean() - half, (first - second) / n)))
    assert found["high"] == pytest.approx(min(1, max(scores.mean() + half, (first - second) / n)))
    assert (found["only_first"], found["only_second"], found["examples"]) == (first, second, n)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        draw = rng.choice(4, size=400, p=[0.93, 0.03, 0.02, 0.02])
        found = intervals.paired_difference(np.isin(draw, (0, 1)), np.isin(draw, (0, 2)))
        covered += found["low"] <= 0.01 <= found["high"]
    assert 0.93 <= covered / 2000 <= 0.975


def test_two_models_that_answer_alike_still_have_an_interval_with_a_width() -> None:
    same = np.ones(100, bool)
    found = intervals.paired_difference(same, same)
    assert found["low"] < 0 < found["high"]


@pytest.mark.parametrize(("a", "b"), [(3, 4), (0, 0)])
def test_arrays_that_do_not_pair_are_refused(a: int, b: int) -> None:
    with pytest.raises(ValueError, match="equally long"):
        intervals.paired_difference(np.ones(a, bool), np.ones(b, bool))


def test_the_unpaired_difference_is_newcombes_published_example() -> None:
    low, high = intervals.unpaired_difference(56 / 70, 70, 48 / 80, 80)  # his example (a), method 10
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_the_unpaired_ratio_has_welchs_interval_on_logarithms() -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(0.1, 0.03, 7)), np.exp(rng.normal(0, 0.05, 5))
    found = intervals.unpaired_ratio(a, b)
    exact = stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    low, high = np.exp(exact.confidence_interval())
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(np.median(a) / np.median(b))
    floored = stats.t.ppf(0.975, int(exact.df)) / stats.t.ppf(0.975, exact.df)  # its degrees are rounded down
    centre, half = np.log(low * high) / 2, np.log(high / low) / 2 * floored
    assert (found.low, found.high) == pytest.approx((np.exp(centre - half), np.exp(centre + half)))


def test_a_single_round_has_no_unpaired_interval() -> None:
    assert intervals.unpaired_ratio([1.0], [1.0, 2.0]) is None
