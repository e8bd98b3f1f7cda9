"""The signals to the trainer: best step, values, failed steps, when to stop."""

from pathlib import Path

import numpy as np
import pytest

from jaxval import signals
from jaxval.records import SCREENED, Checkpoint, Failure, SelectBy, Validation
from jaxval.results.signal_file import SignalFile
from jaxval.run.leaderboard import Leaderboard

RR = SelectBy("dev", "s", "RR")
RANK = SelectBy("dev", "s", "AvgRank", lower_is_better=True)
SAMPLE = SelectBy("small", "t", "RR")
QUERIES = 20


def validation(step, value, measure="RR", series="s", queries=QUERIES):
    """A validation in which the first `queries` of 20 queries have the value, the others 0."""
    values = np.where(np.arange(QUERIES) < queries, float(value), 0.0)
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path(f"/c/{step}")),
        dataset="dev",
        series=series,
        params_at="params",
        passages=3,
        queries=QUERIES,
        per_query={measure: values},
        seconds={"passages": 1.0},
    )


def failure(step, reason="corrupt", series="s"):
    return Failure(Checkpoint(step, str(step), step, Path(f"/c/{step}")), series, reason, "")


def written(folder, *rows, past=(), patience=None, select_by=RR, sample=None):
    """Returns the state after a run that starts from `past` and adds `rows`."""
    board = Leaderboard(select_by)
    file = SignalFile(folder, select_by, patience, sample)
    validations = [row for row in past if isinstance(row, Validation)]
    file.begin(
        [board.add(row) for row in validations],
        [row for row in past if isinstance(row, Failure)],
    )
    for row in rows:
        if isinstance(row, Failure):
            file.fail(row)
        else:
            file.record(board.add(row))
    return signals.read(folder)


def values(*values, measure="RR"):
    return [validation(step, value, measure) for step, value in enumerate(values, start=1)]


def test_best_values_and_failed_steps(tmp_path):
    rows = [validation(1, 0.5), failure(2), validation(3, 0.75), failure(4), validation(4, 0.5)]
    state = written(tmp_path, *rows)
    assert state.select_by == "dev:RR"
    assert state.best == signals.Best(3, 0.75, "/c/3")
    assert state.values == {1: 0.5, 3: 0.75, 4: 0.5}
    assert state.failed == (2,)
    assert not state.lower_is_better


def test_other_series_do_not_count(tmp_path):
    rows = [validation(1, 0.5), validation(2, 1.0, series="u"), failure(3, series="u")]
    state = written(tmp_path, *rows, patience=1)
    assert (state.best.step, state.values, state.failed) == (1, {1: 0.5}, ())
    assert not state.stop


def test_of_equal_values_the_first_is_best(tmp_path):
    assert written(tmp_path, *values(0.5, 0.5)).best.step == 1


def test_where_lower_is_better_the_lowest_is_best(tmp_path):
    state = written(tmp_path, *values(9, 4, 6, measure="AvgRank"), select_by=RANK)
    assert (state.best.step, state.best.value) == (2, 4)
    assert state.lower_is_better


def test_where_lower_is_better_a_gain_is_a_fall(tmp_path):
    falling, rising = (values(*steps, measure="AvgRank") for steps in ([9, 8, 7], [6, 7, 8]))
    assert not written(tmp_path, *falling, select_by=RANK, patience=2).stop
    assert written(tmp_path, *rising, select_by=RANK, patience=2).stop


def test_without_patience_it_never_stops(tmp_path):
    assert not written(tmp_path, *values(0.5, 0.4, 0.3, 0.2)).stop


def test_only_a_significant_gain_resets_the_count(tmp_path):
    slightly_better = [
        validation(1, 0.5, queries=10),
        validation(2, 0.5, queries=12),
        validation(3, 0.5, queries=13),
    ]
    state = written(tmp_path, *slightly_better, patience=2)
    assert state.best.step == 3
    assert state.stop
    assert state.reason == "2 validations without a significant gain"


def test_small_gains_add_up_to_a_significant_one(tmp_path):
    steps = [validation(n, 0.5, queries=6 + 3 * n) for n in range(1, 5)]
    state = written(tmp_path, *steps, patience=3)
    assert not state.stop  # step 3 is significantly better than step 1, though not than step 2


@pytest.mark.parametrize("split", [0, 2, 4])
def test_a_restart_writes_the_same(tmp_path, split):
    rows = values(0.9, 0.5, 0.5, 0.5)
    state = written(tmp_path, *rows[split:], past=rows[:split], patience=3)
    assert state == written(tmp_path, *rows, patience=3)
    assert state.stop


def test_a_screened_checkpoint_counts_as_one_without_a_gain(tmp_path):
    rows = [validation(1, 0.5, series="t"), validation(1, 0.5)]
    for step in (2, 3):
        rows += [validation(step, 0.1, series="t"), failure(step, SCREENED)]
    state = written(tmp_path, *rows, patience=2, sample=SAMPLE)
    assert state.stop
    assert state.failed == (2, 3)
    assert written(tmp_path, past=rows, patience=2, sample=SAMPLE) == state
    assert not written(tmp_path, *rows[:4], patience=2, sample=SAMPLE).stop
