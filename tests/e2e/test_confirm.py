"""--confirm=best: a sample screens, the whole corpus confirms, the ledger remembers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxval import signals
from jaxval.records import SCREENED
from tests.e2e import world
from tests.e2e.test_faults import Place, until

ROOT = Path(__file__).parents[2]
PASSAGES = world.PASSAGES
QUERIES = {f"q{i}": text for i, text in enumerate(list(PASSAGES.values())[:8])}
QRELS = {f"q{i}": {f"p{i}": 1} for i in range(8)}
SAMPLE = dict(list(PASSAGES.items())[:12])


@pytest.fixture
def place(tmp_path):
    """By cosine, a query finds the passage that says the same, unless all are alike."""
    place = Place(tmp_path)
    folders = {"small": SAMPLE, "dev": PASSAGES}
    small, dev = (
        world.write_texts(tmp_path / name, passages, QUERIES, QRELS)
        for name, passages in folders.items()
    )
    place.flags |= {"dataset": f"small:{small}", "similarity": "cosine", "confirm": "best"}
    place.dev = f"--dataset=dev:{dev}"
    return place


def put(place, **kinds):
    for step, kind in kinds.items():
        values = world.table(int(step[1:]))
        place.put(int(step[1:]), np.ones_like(values) if kind == "bad" else values)


def rows(place):
    return place.query(
        "SELECT dataset, step FROM validation JOIN series ON digest = series ORDER BY id"
    )


def screened(place):
    return place.query(
        "SELECT dataset, step, reason FROM failure JOIN series ON digest = series ORDER BY id"
    )


BOTH = [("small", 1), ("dev", 1)]


@pytest.mark.parametrize("measures", ["RR@10,nDCG@10", "AvgRank,RR@10"])
def test_who_is_surely_worse_on_the_sample_is_not_put_to_the_whole(place, measures):
    put(place, s1="good", s2="bad", s3="good")
    flags = {"measures": measures, "keep_best": 1, "patience": 3}
    status, out, err = place.finish(place.dev, idle_timeout=0.1, **flags)
    assert status == 0, err
    put(place, s4="bad", s5="bad")
    place.complete()
    status, out, err = place.finish(place.dev, **flags)
    assert status == 0, err
    alone = [("small", 4), ("small", 5)]
    assert rows(place) == [*BOTH, ("small", 2), ("small", 3), ("dev", 3), *alone]
    assert screened(place) == [("dev", step, SCREENED) for step in (2, 4, 5)]
    assert "2 validated, 3 already in the ledger, 0 lost, 0 corrupt" in out
    assert "2 screened out\n" in out
    assert "confirmed 2 of 5 checkpoints on dev; 3 screened out saved about " in out
    assert f"estimated {measures.partition(',')[0]} of these on dev: step " in out
    assert "screened: on small its " in out
    assert "best on dev: step 1," in out
    assert (place.output / "best" / "best").readlink().name.endswith("_1")
    assert {path.name for path in (place.output / "tensorboard").iterdir()} == {"small", "dev"}
    told = signals.read(place.output)
    assert told.select_by == f"dev:{measures.partition(',')[0]}"
    assert (set(told.values), told.failed, told.best.step) == ({1, 3}, (2, 4, 5), 1)
    assert told.stop
    assert told.reason == "4 validations without a significant gain"
    assert place.finish(place.dev, **flags)[0] == 0
    assert signals.read(place.output) == told
    assert list((place.output / "pins").iterdir()) == []


def test_killed_between_the_two_it_is_confirmed_by_the_next_start(place, monkeypatch):
    hold = place.root / "hold"
    monkeypatch.setenv("HELD_BY", str(hold))
    # On one device, so that a batch of the whole is larger than one of the sample.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    hold.touch()
    put(place, s1="good", s2="bad")
    flags = {"encoder": "tests.e2e.held:encoder"}
    run = place.launch(place.dev, **flags)
    until(lambda: place.steps() == [1], run)
    run.kill()
    run.wait()
    assert (rows(place), screened(place)) == ([("small", 1)], [])
    for step in (1, 2):
        place.delete(step)
    hold.unlink()
    place.complete()
    status, out, err = place.finish(place.dev, **flags)
    assert status == 0, err
    assert rows(place) == [*BOTH, ("small", 2)]
    assert screened(place) == [("dev", 2, SCREENED)]
    assert "2 validated, 0 already" in out


def test_what_was_screened_out_stays_so_until_confirm_is_dropped(place):
    put(place, s1="good", s2="bad")
    place.complete()
    assert place.finish(place.dev)[0] == 0
    status, out, err = place.finish(place.dev, "--retry_failed")
    assert status == 0, err
    assert "0 validated, 2 already in the ledger" in out
    assert screened(place) == [("dev", 2, SCREENED)]
    del place.flags["confirm"]
    assert place.finish(place.dev, "--retry_failed")[0] == 0
    assert rows(place) == [*BOTH, ("small", 2), ("dev", 2)]
    assert screened(place) == []


def test_what_another_sample_screened_out_is_put_to_the_new_one(place, tmp_path):
    put(place, s1="good", s2="bad", s3="bad")
    assert place.finish(place.dev, idle_timeout=0.1)[0] == 0
    assert screened(place) == [("dev", step, SCREENED) for step in (2, 3)]
    place.delete(3)
    other = dict(list(PASSAGES.items())[:14])
    folder = world.write_texts(tmp_path / "other", other, QUERIES, QRELS)
    place.flags["dataset"] = f"small:{folder}"
    place.complete()
    status, out, err = place.finish(place.dev)
    assert status == 0, err
    assert "1 checkpoints were screened out by another sample than small is now" in err
    again = [("small", 1), ("small", 2)]
    assert rows(place) == [*BOTH, ("small", 2), ("small", 3), *again]
    # What is gone cannot be asked again, and step 2 is worse on the new sample as well.
    assert screened(place) == [("dev", 3, SCREENED), ("dev", 2, SCREENED)]
    assert "2 validated, 0 already in the ledger" in out
    status, out, err = place.finish(place.dev)
    assert "another sample" not in err
    assert "0 validated, 2 already in the ledger" in out


def test_the_manifest_of_the_sample_names_the_whole(place, tmp_path):
    put(place, s1="good", s2="bad")
    place.complete()
    whole = place.dev.partition(":")[2]
    command = [sys.executable, "-m", "jaxval.sample", f"--dataset=dev:{whole}"]
    command += ["--strategy=random:size=4", f"--output_dir={tmp_path / 'drawn'}"]
    subprocess.run(command, check=True, cwd=ROOT)
    place.flags["dataset"] = f"small:{tmp_path / 'drawn'}"
    assert place.finish(place.dev)[0] == 0
    corpus = Path(whole) / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + '{"_id": "new", "text": "red"}\n')
    said = refused(place, place.dev)
    assert said == (
        f"jaxval: --confirm: the manifest of small ({tmp_path / 'drawn'}) names another corpus"
        f" than {corpus}: draw a new sample from it"
    )


def test_who_has_its_row_of_the_whole_is_not_screened_out(place):
    put(place, s1="good", s2="bad")
    place.complete()
    flags = dict(place.flags)
    place.flags["dataset"] = place.dev.partition("=")[2]
    del place.flags["confirm"]
    assert place.finish()[0] == 0
    place.flags = flags
    status, _, err = place.finish(place.dev)
    assert status == 0, err
    assert rows(place) == [("dev", 1), ("dev", 2), ("small", 1), ("small", 2)]
    assert screened(place) == []


def refused(place, *extra, **flags):
    status, _, err = place.finish(*extra, **flags)
    assert status == 2, err
    (fault,) = [line for line in err.splitlines() if line.startswith("jaxval: ")]
    return fault


def test_it_says_what_it_needs(place):
    assert "needs two --dataset: first the sample" in refused(place)
    first, second = place.dev.partition("=")[2], f"--dataset={place.flags['dataset']}"
    said = refused(place, second, dataset=first)
    assert "dev has 25 passages and small 12: name the sample in the first" in said
    assert "set --select_by=dev:RR@10" in refused(place, place.dev, select_by="small:RR@10")
