"""Tiny values that a hand can check, scipy's own tau and rho, and what must always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from jaxval.metrics import agreement
from jaxval.metrics.agreement import Estimate, agree

# Of four checkpoints the whole corpus says .1 < .2 < .3 < .4; the part swaps the last two.
WHOLE = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.4, 0.4]])
PART = np.array([[0.2, 0.2], [0.3, 0.3], [0.6, 0.6], [0.5, 0.5]])


def exactly(value):
    """Where all queries say the same, no resample says anything else."""
    return Estimate(*[pytest.approx(value)] * 3)


def test_by_hand():
    found = agree(WHOLE, PART)
    # Five pairs of six stand as they should: (5 - 1) / 6. The ranks differ by 0, 0, 1, 1:
    # 1 - 6 * 2 / (4 * 15).
    assert found.tau == exactly(2 / 3)
    assert found.rho == exactly(0.8)
    assert (found.best, found.same_best, found.same_best_share) == (2, False, 0.0)
    assert found.regret == exactly(0.1)
    # .1, .1, .3 and .1.
    assert found.optimism == exactly(0.15)


def test_equals_count_as_tau_b_has_it():
    # Pairs: 1-2 tied in the part, 1-3 and 2-3 agree: 2 / sqrt(3 * 2).
    found = agree(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [1.0], [3.0]]))
    assert found.tau.value == pytest.approx(2 / np.sqrt(6))
    assert found.rho.value == pytest.approx(np.sqrt(3) / 2)


def test_of_equals_at_the_top_the_first_is_picked_and_its_equal_is_as_good():
    found = agree(np.array([[1.0], [3.0], [3.0]]), np.array([[1.0], [2.0], [3.0]]))
    assert (found.best, found.same_best, found.regret.value) == (2, True, 0.0)
    found = agree(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [3.0], [3.0]]))
    assert (found.best, found.same_best, found.regret.value) == (1, False, 1.0)


def test_where_all_score_the_same_there_is_no_order_to_agree_on():
    found = agree(WHOLE, np.full_like(WHOLE, 0.5))
    assert found.tau == found.rho == Estimate(None, None, None)
    assert (found.best, found.regret.value) == (0, pytest.approx(0.3))


def test_intervals_hold_what_other_queries_would_say():
    rng = np.random.default_rng(0)
    skill = np.linspace(0.2, 0.4, 8)[:, None]
    whole = (rng.random((8, 400)) < skill).astype(float)
    part = np.maximum(whole, rng.random((8, 400)) < 0.1)
    found = agree(whole, part)
    for estimate in (found.tau, found.rho):
        assert estimate.low < estimate.high <= 1
    assert found.optimism.low < found.optimism.value < found.optimism.high
    width = found.optimism.high - found.optimism.low
    by_theory = 2 * 1.96 * (part - whole).mean(0).std() / np.sqrt(400)
    assert width == pytest.approx(by_theory, rel=0.15)
    assert agree(whole, part) == found


values = arrays(float, (3, 6), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@given(values, values)
def test_tau_and_rho_are_scipys(one, other):
    for ours, theirs in (
        (agreement.kendall, stats.kendalltau),
        (agreement.spearman, stats.spearmanr),
    ):
        with np.errstate(all="ignore"):
            expected = [
                theirs(a, b).statistic if np.ptp(a) and np.ptp(b) else np.nan
                for a, b in zip(one, other, strict=True)
            ]
        assert ours(one, other) == pytest.approx(np.array(expected), nan_ok=True)


def test_many_checkpoints_are_compared_a_part_of_the_resamples_at_a_time(monkeypatch):
    rng = np.random.default_rng(1)
    one, other = rng.random((2, 7, 5))
    whole = agreement.kendall(one, other)
    monkeypatch.setattr(agreement, "_AT_A_TIME", 50)
    assert (agreement.kendall(one, other) == whole).all()


@given(arrays(float, (4, 5), elements=st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0])))
def test_the_whole_agrees_with_itself(whole):
    found = agree(whole, whole.copy())
    assert found.tau.value in (None, pytest.approx(1.0))
    assert found.regret == found.optimism == Estimate(0.0, 0.0, 0.0)
    assert found.same_best
    assert found.same_best_share == 1.0


@given(
    arrays(float, (4, 5), elements=st.floats(0, 1)),
    arrays(float, (4, 5), elements=st.floats(0, 1)),
)
def test_bounds(whole, part):
    found = agree(whole, part)
    assert found.tau.value is None or abs(found.tau.value) <= 1 + 1e-9
    assert 0 <= found.regret.value <= np.ptp(whole.mean(1)) + 1e-9
    assert found.same_best == (found.regret.value == 0)


@pytest.mark.parametrize(
    ("whole", "part"),
    [(np.ones((3, 2)), np.ones((3, 1))), (np.ones((1, 2)),) * 2, (np.ones((3, 0)),) * 2],
)
def test_what_cannot_be_compared(whole, part):
    with pytest.raises(ValueError, match="cannot be compared"):
        agree(whole, part)
