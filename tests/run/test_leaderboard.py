"""Which validation is best, in each series."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.records import Checkpoint, SelectBy, Validation
from jaxval.run.leaderboard import Leaderboard

RR = SelectBy("dev", "s", "RR")
RANK = SelectBy("dev", "s", "RR", lower_is_better=True)


def validation(step, *values, series="s", measure="RR"):
    return Validation(
        checkpoint=Checkpoint(step, str(step), step, Path(f"/c/{step}")),
        dataset="dev",
        series=series,
        params_at="params",
        passages=1,
        queries=len(values),
        per_query={measure: np.array(values)},
        seconds={},
    )


def steps(board, series="s"):
    return [best.checkpoint.step for best in board.top(series)]


def test_each_validation_is_ranked_against_those_before_it():
    board = Leaderboard(RR, size=2)
    first, better, worse = (
        board.add(validation(step, value)) for step, value in ((1, 0.5), (2, 0.75), (3, 0.25))
    )
    assert (first.best_before, first.is_best) == (None, True)
    assert (better.best_before, better.is_best) == (first.validation, True)
    assert (worse.best_before, worse.is_best) == (better.validation, False)
    assert steps(board) == [2, 1]
    assert board.best("s") is better.validation


def test_of_equal_validations_the_earlier_is_better():
    board = Leaderboard(RR, size=3)
    ranked = [board.add(validation(step, 0.5)) for step in (7, 2)]
    assert [entry.is_best for entry in ranked] == [True, False]
    assert steps(board) == [7, 2]
    assert Leaderboard(RR, size=3).place(validation(1, 0.5)) == 0


def test_each_series_is_ranked_by_itself():
    board = Leaderboard(RR)
    board.add(validation(1, 0.5))
    other = board.add(validation(1, 0.25, series="t"))
    assert (other.best_before, other.is_best) == (None, True)
    assert (steps(board), steps(board, "t"), steps(board, "none")) == ([1], [1], [])
    assert board.best("none") is None


def test_lower_is_better():
    board = Leaderboard(RANK, size=3)
    ranked = [board.add(validation(step, value)) for step, value in enumerate((4.0, 2.0, 3.0))]
    assert [entry.is_best for entry in ranked] == [True, True, False]
    assert steps(board) == [1, 2, 0]


def test_an_earlier_series_without_the_measure_is_not_ranked():
    board = Leaderboard(RR)
    ranked = board.add(validation(1, 0.5, series="old", measure="AP"))
    assert (ranked.best_before, ranked.is_best) == (None, False)
    assert board.best("old") is None


def test_the_standing_is_against_the_best_so_far():
    board = Leaderboard(RR)
    first = board.compared(validation(1, *[0.5] * 8))
    assert (first.standing.against, first.standing.p_values) == (None, {})
    board.add(first)
    board.add(validation(2, *[0.25] * 8))
    third = board.compared(validation(3, *[1.0] * 8))
    assert third.standing.against == 1
    assert third.standing.p_values == {"RR": pytest.approx(2 / 2**8)}
    assert third.standing.intervals == {"RR": (1.0, 1.0)}


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=12), st.integers(1, 4))
def test_it_is_a_stable_sort(values, size):
    board = Leaderboard(RR, size)
    for step, value in enumerate(values):
        row = validation(step, value)
        place = board.place(row)
        board.add(row)
        assert (row in board.top("s")) == (place < size)
    expected = sorted(range(len(values)), key=lambda step: (-values[step], step))
    assert steps(board) == expected[:size]
