"""What the trainer is told of measures of either direction, and when it is to stop."""

from pathlib import Path

import numpy as np

from jaxval import signals
from jaxval.records import Checkpoint, SelectBy, Validation
from jaxval.results.signal_file import SignalFile

RANK = SelectBy("dev", "s", "AvgRank", lower_is_better=True)
QUERIES = 20


def validation(step, value, measure="AvgRank", series="s"):
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path(f"/c/{step}")),
        dataset="dev",
        series=series,
        params_at="params",
        passages=3,
        queries=QUERIES,
        per_query={measure: np.full(QUERIES, float(value))},
        seconds={"passages": 1.0},
    )


def told(tmp_path, *values, patience=None, select_by=RANK):
    told = SignalFile(tmp_path, select_by, patience)
    told.begin([], [])
    for step, value in enumerate(values, start=1):
        told.record(validation(step, value, select_by.measure))
    return signals.read(tmp_path)


def test_where_lower_is_better_the_least_is_the_best(tmp_path):
    state = told(tmp_path, 9, 4, 6)
    assert (state.best.step, state.best.value) == (2, 4)
    assert state.lower_is_better
    assert told(tmp_path, 9, 4, 6, select_by=SelectBy("dev", "s", "RR")).best.step == 1


def test_where_lower_is_better_a_gain_is_a_fall(tmp_path):
    assert not told(tmp_path, 9, 8, 7, 6, patience=2).stop
    assert told(tmp_path, 6, 7, 8, patience=2).stop
