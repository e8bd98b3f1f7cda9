"""A disk without room: nothing is written in part, and the run continues when there is room."""

import itertools
import threading

import numpy as np
import pytest

from jaxval.corpus import token_store
from jaxval.corpus.token_store import Recipe
from jaxval.errors import DataError, UserError
from jaxval.records import Checkpoint, Ranked, Text, Validation
from jaxval.results import lock
from jaxval.results.tensorboard import TensorBoard
from tests.e2e.place import cut, fill


def test_a_run_waits_until_the_disk_has_room(place, small_disk):
    place.output = place.settings["directory"] = small_disk / "out"
    settings = {"pin_dir": place.root / "pins", "keep_best": 1, "write_run": "trec"}
    place.put(1)
    assert place.run(**settings) == 0
    place.put(2)
    place.put(3, spoil=cut)
    ballast = fill(small_disk, leave=2)
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        assert (place.steps(), place.steps("failure")) == ([1], [])
        assert [line["step"] for line in place.lines()] == [1]
        assert not (place.output / "runs" / "tiny" / "2.trec").exists()
        if len(sleeps) == 3:
            ballast.unlink()

    assert place.run(**settings, sleep=sleep) == 1
    assert sleeps == [5.0] * 3
    assert place.log.count("waiting until there is room") == 1
    assert f"{place.output} has " in place.log
    place.check(1, 2)
    assert place.reasons() == {3: "corrupt"}
    assert not list(place.output.rglob("*.partial"))


def test_the_failure_of_a_checkpoint_waits_too(place, small_disk):
    place.output = place.settings["directory"] = small_disk / "out"
    place.put(1, spoil=cut)
    (small_disk / "out").mkdir()
    ballast = []

    def sleep(seconds):
        assert place.steps("failure") == []
        ballast[0].unlink()

    def trackers(run):
        ballast.append(fill(small_disk, leave=2))
        return []

    settings = {"pin_dir": place.root / "pins", "sleep": sleep}
    assert place.run(**settings, trackers=trackers) == 1
    assert place.reasons() == {1: "corrupt"}


def test_a_directory_without_room_for_the_lock_is_refused(small_disk):
    fill(small_disk, leave=0)
    with pytest.raises(UserError) as raised, lock.hold(small_disk):
        pass
    assert str(raised.value).startswith(f"`output_dir={small_disk}` cannot be written: ")


def test_a_disk_that_fills_up_during_tokenization_keeps_nothing_incomplete(
    small_disk, tiny_tokenizer, silent
):
    """Each try has one page more, so that each of the files is once the one without room."""
    texts = [Text(f"d{row}", (4 + row % 26,) * (row % 40)) for row in range(1000)]
    recipe = Recipe("{title} {text}", "", 64)

    def build():
        return token_store.open_or_build(
            small_disk / "tokens",
            texts,
            "o",
            tiny_tokenizer,
            recipe,
            find_lines=str,
            bar=silent,
        )

    failed = 0
    for pages in itertools.count():
        ballast = fill(small_disk, leave=pages * 4096 / 2**20)
        try:
            store = build()
            break
        except (DataError, OSError):
            failed += 1
            assert not list((small_disk / "tokens").glob("*"))
        finally:
            ballast.unlink()
    assert failed > 3
    for bucket in store.buckets:
        of_bucket = slice(bucket.start, bucket.start + bucket.count)
        for row, ids in zip(store.rows[of_bucket], store.matrix(bucket), strict=True):
            expected = [2, *texts[row].text, 3]
            assert ids[: len(expected)].tolist() == expected


def test_tensorboard_does_not_block_on_a_full_disk(small_disk):
    tracker = TensorBoard(small_disk / "tensorboard")
    tracker.begin([], [])
    ballast = fill(small_disk, leave=0)
    refused = []

    def write():
        for step in range(40):
            try:
                tracker.record(ranked(step))
            except OSError:
                refused.append(step)

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(20)
    assert not writing.is_alive()
    assert refused
    ballast.unlink()
    tracker.end()


def ranked(step):
    validation = Validation(
        checkpoint=Checkpoint(step, str(step), step, "/c"),
        dataset="tiny",
        series="0123456789",
        params_at="params",
        passages=3,
        queries=2,
        per_query={"RR@10" * 500: np.ones(2)},
        seconds={"passages": 1.0},
    )
    return Ranked(validation, best_before=None, is_best=False)
