"""`confirm=best`: a sample screens checkpoints, and the whole corpus confirms the others."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxval import signals
from jaxval.records import SCREENED
from tests.e2e import screening, world
from tests.run.runner import dataset

ROOT = Path(__file__).parents[2]
BOTH = [("small", 1), ("dev", 1)]


@pytest.fixture
def place(place):
    small, dev = screening.write_sets(place.root)
    place.settings |= {
        "datasets": (dataset("small", small), dataset("dev", dev)),
        "similarity": "cosine",
        "confirm": "best",
    }
    place.dev = dev
    return place


@pytest.mark.parametrize("measures", [("RR@10", "nDCG@10"), ("AvgRank", "RR@10")])
def test_a_checkpoint_that_is_significantly_worse_is_screened_out(place, measures):
    screening.put(place, s1="good", s2="bad", s3="good")
    settings = {"measures": measures, "keep_best": 1, "patience": 3}
    assert place.watch(idle_timeout=0.1, **settings) == 0
    screening.put(place, s4="bad", s5="bad")
    place.complete()
    assert place.watch(**settings) == 0
    alone = [("small", 4), ("small", 5)]
    rows = [*BOTH, ("small", 2), ("small", 3), ("dev", 3), *alone]
    assert screening.validated(place) == rows
    assert screening.failed(place) == [("dev", step, SCREENED) for step in (2, 4, 5)]
    assert "2 validated, 3 already in the ledger, 0 lost, 0 corrupt" in place.out
    assert "2 screened out\n" in place.out
    message = "confirmed 2 of 5 checkpoints on dev; 3 screened out, which saved about "
    assert message in place.out
    assert f"estimated {measures[0]} of screened-out checkpoints on dev: step " in place.out
    assert f"screened: {measures[0]} on small is " in place.out
    assert "best on dev: step 1," in place.out
    assert (place.output / "best" / "best").readlink().name.endswith("_1")
    assert {path.name for path in (place.output / "tensorboard").iterdir()} == {"small", "dev"}
    state = signals.read(place.output)
    assert state.select_by == f"dev:{measures[0]}"
    assert (set(state.values), state.failed, state.best.step) == ({1, 3}, (2, 4, 5), 1)
    assert state.stop
    assert state.reason == "4 validations without a significant gain"
    assert place.watch(**settings) == 0
    assert signals.read(place.output) == state
    assert place.pins() == []


def test_a_verdict_stays_until_confirm_is_removed(place):
    screening.put(place, s1="good", s2="bad")
    assert place.run() == 0
    assert place.run(retry_failed=True) == 0
    assert "0 validated, 2 already in the ledger" in place.out
    assert screening.failed(place) == [("dev", 2, SCREENED)]
    assert place.run(confirm=None, retry_failed=True) == 0
    assert screening.validated(place) == [*BOTH, ("small", 2), ("dev", 2)]
    assert screening.failed(place) == []


def test_a_new_sample_screens_again_what_another_one_screened_out(place):
    screening.put(place, s1="good", s2="bad", s3="bad")
    assert place.run() == 0
    assert screening.failed(place) == [("dev", step, SCREENED) for step in (2, 3)]
    place.delete(3)
    larger = dict(list(screening.PASSAGES.items())[:14])
    folder = world.write_texts(
        place.root / "larger", larger, screening.QUERIES, screening.QRELS
    )
    place.settings["datasets"] = (dataset("small", folder), dataset("dev", place.dev))
    assert place.run() == 0
    assert "the sample small changed since it screened out 1 checkpoints" in place.log
    again = [("small", 1), ("small", 2)]
    assert screening.validated(place) == [*BOTH, ("small", 2), ("small", 3), *again]
    # Step 3 no longer exists. Step 2 is worse on the new sample as well.
    assert screening.failed(place) == [("dev", 3, SCREENED), ("dev", 2, SCREENED)]
    assert "2 validated, 0 already in the ledger" in place.out
    assert place.run() == 0
    assert "the sample small changed" not in place.log
    assert "0 validated, 2 already in the ledger" in place.out


def test_a_checkpoint_with_a_result_on_the_whole_corpus_is_not_screened_out(place):
    screening.put(place, s1="good", s2="bad")
    assert place.run(datasets=(dataset("dev", place.dev),), confirm=None) == 0
    assert place.run() == 0
    rows = [("dev", 1), ("dev", 2), ("small", 1), ("small", 2)]
    assert screening.validated(place) == rows
    assert screening.failed(place) == []


def test_a_sample_of_another_corpus_is_refused(place):
    screening.put(place, s1="good")
    drawn = place.root / "drawn"
    command = [sys.executable, "-m", "jaxval.sample", f"--dataset=dev:{place.dev}"]
    command += ["--strategy=random:size=4", f"--output_dir={drawn}"]
    subprocess.run(command, check=True, cwd=ROOT)
    place.settings["datasets"] = (dataset("small", drawn), dataset("dev", place.dev))
    assert place.run() == 0
    corpus = place.dev / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + '{"_id": "new", "text": "red"}\n')
    message = place.refused()
    assert str(drawn) in message
    assert f"another corpus than {corpus}: draw a new sample" in message


def test_what_confirm_needs(place):
    small, dev = place.settings["datasets"]
    assert "needs two `dataset`: first the sample" in place.refused(datasets=(small,))
    message = place.refused(datasets=(dev, small))
    assert "dev has 25 passages and small 12" in message
    assert "`select_by=dev:RR@10`" in place.refused(select_by="small:RR@10")
