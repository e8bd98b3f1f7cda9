"""A short run of the soak test of `make soak`."""

from tests import soak


def test_repeated_kills_lose_no_watched_step_and_validate_none_twice(tmp_path):
    report = soak.soak(
        tmp_path, steps=40, seconds=0.3, seed=2, margin=0.5, limit=120, say=lambda _: None
    )
    assert report.holds, f"\n{report}"
    assert report.figures["kills"] >= 2
    assert report.figures["steps committed while watched"] >= 10
