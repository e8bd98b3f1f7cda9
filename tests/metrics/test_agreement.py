"""Examples computed by hand, SciPy's tau and rho, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from jaxval.metrics import agreement
from jaxval.metrics.agreement import Estimate, agree

# Four checkpoints: .1 < .2 < .3 < .4 on the whole; the part swaps the last two.
WHOLE = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.4, 0.4]])
PART = np.array([[0.2, 0.2], [0.3, 0.3], [0.6, 0.6], [0.5, 0.5]])


def exactly(value):
    """Returns an interval without width: all queries agree, so all resamples do."""
    return Estimate(*[pytest.approx(value)] * 3)


def test_by_hand():
    agreed = agree(WHOLE, PART)
    # Five of six pairs agree: (5 - 1) / 6. The ranks differ by 0, 0, 1, 1:
    # 1 - 6 * 2 / (4 * 15).
    assert agreed.tau == exactly(2 / 3)
    assert agreed.rho == exactly(0.8)
    assert (agreed.best, agreed.same_best, agreed.same_best_share) == (2, False, 0.0)
    assert agreed.regret == exactly(0.1)
    # The mean of .1, .1, .3 and .1.
    assert agreed.optimism == exactly(0.15)


def test_ties_count_as_in_tau_b():
    # Pairs: 1-2 tied in the part, 1-3 and 2-3 agree: 2 / sqrt(3 * 2).
    agreed = agree(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [1.0], [3.0]]))
    assert agreed.tau.value == pytest.approx(2 / np.sqrt(6))
    assert agreed.rho.value == pytest.approx(np.sqrt(3) / 2)


def test_the_first_of_equal_best_is_chosen_and_any_of_them_is_right():
    agreed = agree(np.array([[1.0], [3.0], [3.0]]), np.array([[1.0], [2.0], [3.0]]))
    assert (agreed.best, agreed.same_best, agreed.regret.value) == (2, True, 0.0)
    agreed = agree(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [3.0], [3.0]]))
    assert (agreed.best, agreed.same_best, agreed.regret.value) == (1, False, 1.0)


def test_tau_and_rho_are_undefined_if_all_score_the_same():
    agreed = agree(WHOLE, np.full_like(WHOLE, 0.5))
    assert agreed.tau == agreed.rho == Estimate(None, None, None)
    assert (agreed.best, agreed.regret.value) == (0, pytest.approx(0.3))


def test_intervals_have_the_width_of_the_normal_approximation():
    rng = np.random.default_rng(0)
    skill = np.linspace(0.2, 0.4, 8)[:, None]
    whole = (rng.random((8, 400)) < skill).astype(float)
    part = np.maximum(whole, rng.random((8, 400)) < 0.1)
    agreed = agree(whole, part)
    for estimate in (agreed.tau, agreed.rho):
        assert estimate.low < estimate.high <= 1
    assert agreed.optimism.low < agreed.optimism.value < agreed.optimism.high
    width = agreed.optimism.high - agreed.optimism.low
    by_theory = 2 * 1.96 * (part - whole).mean(0).std() / np.sqrt(400)
    assert width == pytest.approx(by_theory, rel=0.15)
    assert agree(whole, part) == agreed


values = arrays(float, (3, 6), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@given(values, values)
def test_tau_and_rho_equal_scipys(one, other):
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


def test_batches_of_resamples_give_the_same_values(monkeypatch):
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 7, 5))
    whole = agreement.kendall(first, second)
    monkeypatch.setattr(agreement, "_BATCH_PAIRS", 50)
    assert (agreement.kendall(first, second) == whole).all()


@given(arrays(float, (4, 5), elements=st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0])))
def test_the_whole_corpus_agrees_with_itself(whole):
    agreed = agree(whole, whole.copy())
    assert agreed.tau.value in (None, pytest.approx(1.0))
    assert agreed.regret == agreed.optimism == Estimate(0.0, 0.0, 0.0)
    assert agreed.same_best
    assert agreed.same_best_share == 1.0


@given(
    arrays(float, (4, 5), elements=st.floats(0, 1)),
    arrays(float, (4, 5), elements=st.floats(0, 1)),
)
def test_bounds(whole, part):
    agreed = agree(whole, part)
    assert agreed.tau.value is None or abs(agreed.tau.value) <= 1 + 1e-9
    assert 0 <= agreed.regret.value <= np.ptp(whole.mean(1)) + 1e-9
    assert agreed.same_best == (agreed.regret.value == 0)


@pytest.mark.parametrize(
    ("whole", "part"),
    [(np.ones((3, 2)), np.ones((3, 1))), (np.ones((1, 2)),) * 2, (np.ones((3, 0)),) * 2],
)
def test_values_that_cannot_be_compared(whole, part):
    with pytest.raises(ValueError, match="cannot be compared"):
        agree(whole, part)
