"""The soak of `make soak`, in short."""

from tests import soak


def test_killed_again_and_again_it_loses_no_watched_step_and_counts_none_twice(tmp_path):
    report = soak.soak(
        tmp_path, steps=40, seconds=0.3, seed=2, margin=0.5, limit=120, say=lambda _: None
    )
    assert report.holds, f"\n{report}"
    assert report.figures["kills"] >= 2
    assert report.figures["steps committed while watched"] >= 10
