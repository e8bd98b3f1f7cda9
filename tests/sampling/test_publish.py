import json
import os
import time

import pytest

from jaxval.corpus import manifest
from jaxval.corpus.datasets import parse
from jaxval.corpus.manifest import Origin
from jaxval.errors import DataError, UserError
from jaxval.sampling import publish
from jaxval.sampling.strategies import Strategy

INPUTS = {"corpus": "1", "queries": "2", "qrels": "3", "runs": ["4", "5"]}
MADE = Origin("run:depth=9", 0, None, INPUTS)


def fill(folder):
    (folder / "corpus.jsonl").write_text("whole")
    return {"passages": 1}


def test_a_sample_is_published_as_a_whole_and_recognized(tmp_path):
    folder = tmp_path / "new" / "sample"
    assert not manifest.holds(folder, MADE)
    assert publish.publish(folder, MADE, fill) == {"passages": 1}
    assert manifest.holds(folder, MADE)
    written = json.loads((folder / "manifest.json").read_text())
    assert written == {
        "strategy": "run:depth=9",
        "seed": 0,
        "stemmer": None,
        "inputs": INPUTS,
        "dense": None,
        "counts": {"passages": 1},
    }
    assert [path.name for path in folder.parent.iterdir()] == ["sample"]
    assert sorted(path.name for path in folder.iterdir()) == ["corpus.jsonl", "manifest.json"]


def test_an_empty_folder_is_filled(tmp_path):
    assert not manifest.holds(tmp_path, MADE)
    publish.publish(tmp_path, MADE, fill)
    assert manifest.holds(tmp_path, MADE)


def test_a_failed_sample_leaves_nothing(tmp_path):
    def broken(folder):
        fill(folder)
        raise DataError("c:3: broken")

    with pytest.raises(DataError):
        publish.publish(tmp_path / "sample", MADE, broken)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_removed_after_a_day(tmp_path):
    old, young = tmp_path / ".s.1.partial", tmp_path / ".s.2.partial"
    theirs = tmp_path / "theirs.partial"
    for path in (old, young, theirs):
        path.mkdir()
        if path != young:
            long_ago = time.time() - 100_000
            os.utime(path, (long_ago, long_ago))
    publish.publish(tmp_path / "s", MADE, fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".s.2.partial",
        "s",
        "theirs.partial",
    ]


def test_the_second_of_two_processes_accepts_the_first_ones_sample(tmp_path):
    folder = tmp_path / "s"

    def slow(partial):
        if not folder.exists():
            partial.rename(tmp_path / "elsewhere")
            publish.publish(folder, MADE, fill)
            (tmp_path / "elsewhere").rename(partial)
        return fill(partial)

    publish.publish(folder, MADE, slow)
    assert manifest.holds(folder, MADE)
    with pytest.raises(UserError, match="holds another sample"):
        publish.publish(folder, Origin("full", 0, None, INPUTS), fill)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"`output_dir=.*file/s` cannot be written: "):
        publish.publish(tmp_path / "file" / "s", MADE, fill)


def test_the_origin_depends_on_bytes_but_not_on_the_order_of_runs(beir, tmp_path):
    files = parse(f"a:{beir()}")
    paths = [tmp_path / "1", tmp_path / "2"]
    for path in paths:
        path.write_text(path.name)
    first = publish.origin(files, Strategy(run=3), paths, 5)
    assert first == publish.origin(files, Strategy(run=3), paths[::-1], 5)
    assert (first.strategy, first.seed, list(first.inputs)) == (
        "run:depth=3",
        5,
        ["corpus", "queries", "qrels", "runs"],
    )
    files.corpus.write_text(files.corpus.read_text() + "\n")
    assert publish.origin(files, Strategy(run=3), paths, 5) != first


def test_the_origin_has_a_stemmer_only_with_a_bm25_part(beir):
    files = parse(f"a:{beir()}")
    assert publish.origin(files, Strategy(random=3), [], 5).stemmer is None
    assert publish.origin(files, Strategy(bm25=3), [], 5).stemmer == "snowball english"
