"""Examples computed by hand, exact values by enumeration, and error rates."""

import dataclasses
import itertools
import time
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.metrics import significance
from jaxval.metrics.significance import compare, interval, p_value

GRADES = [Fraction(0), Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(3, 10)]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings(action="error"):
        yield


def paired(differences):
    """Returns values and a baseline with these differences."""
    differences = np.array(differences, float)
    return np.maximum(differences, 0), np.maximum(-differences, 0)


def brute_force(differences):
    """Returns the exact two-sided p-value, from all combinations of signs."""
    observed = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    extreme = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed
        for signs in flips
    ]
    return sum(extreme) / len(flips)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.5], 1.0),
        ([0.5, 0.5], 2 / 4),
        ([0.5, 0.5, 0.5], 2 / 8),
        ([0.25] * 6, 2 / 64),
        ([-0.25] * 6, 2 / 64),
        ([1, 1, 1, 0.5], 2 / 16),
        ([1, 1, 1, -0.5], 4 / 16),
        ([1, -1], 1.0),
        ([0.1, 0.2, -0.3], 1.0),
        ([0, 0, 0.5, 0, 0.5], 2 / 4),
    ],
)
def test_p_values_by_hand(differences, expected):
    assert p_value(*paired(differences)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("queries", [1, 2, 30, 7000])
def test_equal_values_have_a_p_value_of_one(queries):
    values = np.random.default_rng(0).random(queries)
    assert p_value(values, values.copy()) == 1.0


@given(
    st.lists(
        st.tuples(st.sampled_from(GRADES), st.sampled_from(GRADES)), min_size=1, max_size=9
    )
)
def test_p_values_of_few_queries_are_exact(pairs):
    values, baseline = (np.array([float(pair[side]) for pair in pairs]) for side in (0, 1))
    expected = brute_force([a - b for a, b in pairs])
    assert p_value(values, baseline) == pytest.approx(expected, abs=1e-12)


def test_the_estimate_agrees_with_the_exact_p_value():
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.2, 0.4):
        differences = rng.normal(shift, 0.5, 13)
        exact = brute_force(differences.tolist())
        estimate = significance._estimated(differences)
        error = 4 * np.sqrt(exact * (1 - exact) / significance._FLIPS)
        assert estimate == pytest.approx(exact, abs=error + 2e-4)
        assert p_value(*paired(differences)) == pytest.approx(exact, abs=1e-12)


def test_the_estimate_counts_ties():
    """Fourteen equal gains and one loss: 2 (1 + 15) of 2^15 combinations are as extreme."""
    estimate = p_value(*paired([1 / 3] * 14 + [-1 / 3]))
    assert estimate == pytest.approx(2 * 16 / 2**15, abs=1e-3)
    assert p_value(*paired([1 / 3, -1 / 3] * 10)) == 1.0
    assert p_value(*paired([0.1, 0.2, -0.3] * 10)) == 1.0


values = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(st.data(), values)
def test_a_p_value_is_a_symmetric_probability(data, first):
    second = data.draw(st.lists(st.floats(0, 1), min_size=len(first), max_size=len(first)))
    first, second = np.array(first), np.array(second)
    p = p_value(first, second)
    assert 0 < p <= 1
    assert p_value(first, second) == p
    assert p_value(second, first) == pytest.approx(p, abs=0.03)
    if np.count_nonzero(first - second) <= 13:
        assert p_value(second, first) == pytest.approx(p, abs=1e-12)


@given(values)
def test_an_interval_contains_the_mean_and_lies_within_the_range(drawn):
    drawn = np.array(drawn)
    low, high = interval(drawn)
    slack = 1e-12
    assert drawn.min() - slack <= low <= drawn.mean() + slack
    assert drawn.mean() - slack <= high <= drawn.max() + slack
    assert interval(drawn) == (low, high)


@pytest.mark.parametrize("drawn", [[0.3], [0.1, 0.1, 0.1], [0.0] * 500])
def test_an_interval_of_equal_values_has_no_width(drawn):
    assert interval(np.array(drawn)) == (drawn[0], drawn[0])


def test_intervals_by_hand():
    assert interval(np.array([0.0, 1.0])) == (0.0, 1.0)  # each with probability 1/4
    coin = np.tile([0.0, 1.0], 5000)
    low, high = interval(coin)
    assert low == pytest.approx(0.5 - 1.96 * 0.005, abs=1e-3)
    assert high == pytest.approx(0.5 + 1.96 * 0.005, abs=1e-3)


def test_the_p_value_of_a_certain_gain_is_the_lowest_possible():
    values = np.random.default_rng(0).random(500)
    assert p_value(values + 0.1, values) == pytest.approx(2 / (significance._FLIPS + 1))


def test_different_numbers_of_queries_cannot_be_paired():
    with pytest.raises(ValueError, match=r"\(3,\).*\(1,\)"):
        p_value(np.zeros(3), np.zeros(1))


def test_integers_are_valid_values():
    assert p_value(np.array([1, 2, 3]), np.array([0, 1, 2])) == 0.25
    assert interval(np.array([2, 2])) == (2.0, 2.0)


def test_five_percent_of_random_differences_are_significant():
    rng = np.random.default_rng(11)
    p = [p_value(rng.random(40), rng.random(40)) for _ in range(300)]
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 0.038  # three standard deviations
    assert 0.4 < np.mean(p) < 0.6


def test_ninety_five_percent_of_intervals_contain_the_true_mean():
    rng = np.random.default_rng(12)
    intervals = [interval(rng.random(60)) for _ in range(300)]
    assert abs(np.mean([low <= 0.5 <= high for low, high in intervals]) - 0.95) < 0.038


def test_a_comparison():
    better = {"AP": np.full(6, 0.75), "RR@10": np.array([0, 1, 0, 1, 0, 1.0])}
    alone = compare(better, None)
    assert alone.intervals["AP"] == (0.75, 0.75)
    assert alone.p_values == {}
    against = compare(better, {"RR@10": better["RR@10"], "AP": np.full(6, 0.5), "P@5": None})
    assert against.intervals == alone.intervals
    assert against.p_values == {"AP": 2 / 64, "RR@10": 1.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        against.p_values = {}
    assert compare(better, {"AP": better["AP"]}).p_values == {"AP": 1.0}


def test_many_queries_take_little_time_and_memory():
    rng = np.random.default_rng(0)
    names = ("RR@10", "nDCG@10", "R@100")
    first = {name: rng.random(10_570) for name in names}
    second = {name: first[name] + rng.normal(0, 0.1, 10_570) for name in names}
    before = time.process_time()
    compare(first, second)
    assert time.process_time() - before < 10  # 1.2 s on an idle machine
    tracemalloc.start()
    compare({"AP": first["RR@10"]}, {"AP": second["RR@10"]})
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
