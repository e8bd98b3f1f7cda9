import itertools

from hypothesis import given
from hypothesis import strategies as st

from jaxval.checkpoints.gaps import unseen

STEPS = st.integers(0, 10_000)


@given(st.sets(STEPS), STEPS)
def test_claimed_steps_are_new_and_strictly_between(known, following):
    claimed = unseen(known, following)
    assert not known.intersection(claimed)
    assert all(max(known) < step < following for step in claimed)
    assert claimed == sorted(set(claimed))


@given(STEPS, st.integers(1, 500), st.integers(3, 20), st.integers(1, 20))
def test_all_steps_of_a_regular_trainer_are_claimed(first, every, before, missed):
    steps = list(range(first, first + every * (before + missed + 1), every))
    assert unseen(steps[:before], steps[-1]) == steps[before:-1]


@given(st.sets(STEPS, min_size=2), STEPS)
def test_nothing_is_claimed_without_a_regular_interval(known, following):
    steps = sorted(known)
    distances = [b - a for a, b in itertools.pairwise(steps)]
    if len(set(distances)) == len(distances):
        assert unseen(known, following) == []


@given(STEPS, st.integers(2, 500), st.integers(3, 20), st.data())
def test_nothing_is_claimed_if_the_next_step_is_off_the_grid(first, every, before, data):
    steps = list(range(first, first + every * before, every))
    off = data.draw(st.integers(1, 3 * every).filter(lambda n: n % every))
    assert unseen(steps, steps[-1] + off) == []


@given(STEPS, st.integers(1, 500), st.integers(3, 20))
def test_nothing_is_claimed_without_a_gap(first, every, before):
    steps = list(range(first, first + every * before, every))
    assert unseen(steps, steps[-1] + every) == []


def test_by_hand():
    assert unseen([10, 20, 30], 60) == [40, 50]
    assert unseen([30, 10, 20], 60) == [40, 50]  # the order does not matter
    assert unseen([0, 100, 200, 250, 300], 500) == [400]  # one more save in between
    assert unseen([10, 20], 60) == []  # one interval is not enough
    assert unseen([10, 20, 30], 30) == unseen([10, 20, 30], 5) == []
    assert unseen([], 5) == unseen([1], 5) == []
