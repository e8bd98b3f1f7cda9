from pathlib import Path

import numpy as np
import pytest

from jaxval.metrics.screening import Screening
from jaxval.records import SCREENED, Checkpoint, Failure, SelectBy, Standing, Validation

SAMPLE, WHOLE = SelectBy("small", "s", "RR@10"), SelectBy("dev", "w", "RR@10")
BY_RR = Screening(SAMPLE, WHOLE)
BY_RANK = Screening(
    SelectBy("small", "s", "RR@10", lower_is_better=True),
    SelectBy("dev", "w", "RR@10", lower_is_better=True),
)


def validation(step, value, p_value=None, series="s", **seconds):
    standing = Standing({}, 10, {} if p_value is None else {"RR@10": p_value})
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path(f"/c/{step}")),
        dataset="small",
        series=series,
        params_at="params",
        passages=3,
        queries=2,
        per_query={"RR@10": np.full(2, value)},
        seconds=seconds,
        standing=standing,
    )


BEST = validation(10, 0.5)


@pytest.mark.parametrize(
    ("value", "p_value", "out"),
    [(0.4, 0.01, True), (0.4, 0.05, False), (0.5, 0.01, False), (0.6, 0.01, False)],
)
def test_a_significantly_worse_checkpoint_is_screened_out(value, p_value, out):
    assert bool(BY_RR.verdict(validation(20, value, p_value), BEST)) == out


def test_if_lower_is_better_a_higher_value_is_worse():
    assert BY_RANK.verdict(validation(20, 0.6, 0.01), BEST)
    assert not BY_RANK.verdict(validation(20, 0.4, 0.01), BEST)


def test_the_first_checkpoint_is_confirmed():
    assert BY_RR.verdict(validation(20, 0.0), None) is None


def test_the_failure_gives_the_reason():
    failure = BY_RR.verdict(validation(20, 0.25, 0.0123), BEST)
    assert (failure.checkpoint.step, failure.series, failure.reason) == (20, "w", SCREENED)
    assert failure.message == (
        "RR@10 on small is 0.2500, significantly worse than 0.5000 of step 10 (p = 0.012):"
        " not validated on dev"
    )


def screened(step, series="w", reason=SCREENED):
    return Failure(validation(step, 0.0).checkpoint, series, reason, "")


def both(step, sampled, whole):
    return [validation(step, sampled), validation(step, whole, series="w")]


def test_scores_of_screened_out_checkpoints_are_estimated():
    """The sample's excess is .1 at step 0, .2 at step 10 and .25 at step 40."""
    rows = [*both(0, 0.5, 0.4), *both(10, 0.6, 0.4), *both(40, 0.7, 0.45)]
    rows += [validation(step, 0.5) for step in (4, 5, 30)]
    out = [screened(30), screened(5), screened(4), screened(7), screened(4, "other")]
    assert BY_RR.estimated(rows, out) == (
        "estimated RR@10 of screened-out checkpoints on dev: step 4 0.4000, step 5 0.4000,"
        " step 30 0.2500 (for confirmed checkpoints the error is 0.0833 on average and"
        " 0.1000 at most)"
    )
    assert BY_RR.estimated(rows, []) == ""
    assert BY_RR.estimated([*both(0, 0.5, 0.4), validation(4, 0.5)], out) == ""


def test_the_saved_time_is_reported():
    sampled = [validation(step, 0.5, restore=9, passages=2) for step in range(4)]
    whole = [validation(0, 0.5, series="w", restore=9, passages=600, search=60)]
    failures = [screened(1), screened(2), screened(3, reason="corrupt"), screened(4, "other")]
    assert BY_RR.saved([*sampled, *whole], failures) == (
        "confirmed 1 of 3 checkpoints on dev; 2 screened out, which saved about 22 min;"
        " small took 8.0 s in total"
    )
    assert BY_RR.saved(whole, []) == "confirmed 1 of 1 checkpoints on dev; 0 screened out"
    assert BY_RR.saved([], []) == "confirmed 0 of 0 checkpoints on dev; 0 screened out"
