"""Layouts of checkpoints that decide which parameters encode, from the files to the row."""

import tarfile
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from flax.training import checkpoints as flax_checkpoints

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.restore import restore
from jaxval.encoders import folder
from jaxval.records import ParamsPaths
from tests.e2e import world

FLAX_BERT = Path(__file__).parents[1] / "checkpoints" / "fixtures" / "flax_bert"


@pytest.fixture
def without_orbax():
    before = flax.config.flax_use_orbax_checkpointing
    flax.config.update("flax_use_orbax_checkpointing", False)
    yield
    flax.config.update("flax_use_orbax_checkpointing", before)


def words(table):
    return {"words": {"embedding": table}}


def values(place):
    return {line["step"]: line["measures"]["RR@10"] for line in place.lines()}


def test_each_of_two_towers_encodes_with_its_parameters_and_so_do_exports(place):
    for step in (1, 2):
        towers = [words(world.table(step)), words(world.table(step + 10))]
        place.save(step, {"params": {"params": towers}, "opt_state": [towers]})
    assert place.run(keep_best=2) == 0
    message = "parameters at params/params/0 (queries), params/params/1 (passages)"
    assert message in place.log
    expected = {
        step: np.mean(world.reciprocal_ranks(world.table(step), world.table(step + 10)))
        for step in (1, 2)
    }
    assert values(place) == pytest.approx(expected)
    exports = {"checkpoint_dir": str(place.output / "best"), "directory": place.root / "again"}
    place.checkpoints, place.output = place.output / "best", place.root / "again"
    assert place.run(**exports, pin_dir=place.output / "pins") == 0
    assert "parameters at params/query (queries), params/passage (passages)" in place.log
    assert values(place) == pytest.approx(expected)


def test_towers_with_ambiguous_names_are_chosen_by_settings(place):
    place.save(1, {"a": words(world.table(11)), "b": words(world.table(1))})
    assert (
        "more than one subtree fits the encoder: a, b. Choose one for both" in place.refused()
    )
    assert place.run(params_paths=ParamsPaths(query="b", passage="a")) == 0
    expected = world.reciprocal_ranks(world.table(1), world.table(11))
    assert values(place) == pytest.approx({1: np.mean(expected)})


def test_tevax_dual_params_of_flax_bert_are_found(place):
    """Saved with FlaxBertModel of transformers 4.57 (scripts/make_fixtures.py)."""
    place.checkpoints.mkdir()
    with tarfile.open(FLAX_BERT / "dual.tar.gz") as tar:
        tar.extractall(place.checkpoints, filter="data")
    lengths = {"query_max_len": 8, "passage_max_len": 8}
    assert place.run(factory=None, folder=str(FLAX_BERT), write_run="trec", **lengths) == 0
    encoder = folder.build(folder.read(str(FLAX_BERT)))
    (checkpoint,) = committed(place.checkpoints)
    towers = restore(checkpoint, encoder.abstract_params()).params
    vectors = {}
    for tower, texts in {"query": world.QUERIES, "passage": world.PASSAGES}.items():
        ids = np.array([padded(text, 6) for text in texts.values()])
        encoded = jax.jit(encoder.encode_queries)(towers[tower], ids, ids > 0)
        vectors |= dict(zip(texts, np.asarray(encoded), strict=True))
    run = (place.output / "runs" / "tiny" / "3.trec").read_text().splitlines()
    assert len(run) == len(world.QUERIES) * len(world.PASSAGES)
    for query, _, passage, _, score, _ in map(str.split, run):
        assert float(score) == pytest.approx(vectors[query] @ vectors[passage], rel=1e-4)


def padded(text, length):
    ids = [2, *map(world.VOCABULARY.index, text.split()), 3]
    return ids + [0] * (length - len(ids))


def low_rank(step):
    rng = np.random.default_rng(step)
    return rng.normal(size=(len(world.VOCABULARY), 2)), rng.normal(size=(2, world.DIM))


def test_adapters_are_merged_into_their_base_for_each_checkpoint(place):
    base = place.stage(0, {"params": words(world.table(0))})
    for step in (1, 2):
        left, right = low_rank(step)
        adapter = {"words": {"embedding": {"in_matrix": left, "out_matrix": right}}}
        place.save(step, {"lora": adapter})
    assert place.run(base_params=str(base), lora_alpha=3) == 0
    message = "parameters at lora; adapters of rank 2, merged into 1 of 1 arrays"
    assert message in place.log
    tables = {step: world.table(0) + 3 / 2 * np.matmul(*low_rank(step)) for step in (1, 2)}
    assert values(place) == pytest.approx(
        {step: np.mean(world.reciprocal_ranks(table, table)) for step, table in tables.items()}
    )


def test_a_base_that_cannot_be_read_is_refused(place):
    message = place.refused(base_params="no/such", lora_alpha=3)
    assert message.startswith("`base_params=no/such`: there is neither an Orbax checkpoint")
    assert "`model" not in message


@pytest.mark.filterwarnings("ignore:Flax Checkpointing will soon be deprecated")
def test_msgpack_files_are_pinned_as_they_are_committed(place, without_orbax):
    """As flax.training.checkpoints writes without Orbax, keeping one."""
    place.checkpoints.mkdir()
    watcher = place.watcher()
    for step in range(3):
        state = {"params": words(world.table(step)), "opt_state": words(world.table(9))}
        flax_checkpoints.save_checkpoint(place.checkpoints, state, step, keep=1)
        watcher.poll()
        watcher.poll()  # a checkpoint without metadata is committed if it does not change
    assert [path.name for path in place.checkpoints.iterdir()] == ["checkpoint_2"]
    assert [name.partition(".")[0] for name in place.pins()] == [
        f"checkpoint_{step}" for step in range(3)
    ]
    place.complete()
    watcher.poll()
    assert place.run(watcher) == 0
    assert values(place) == pytest.approx({s: np.mean(world.expected(s)) for s in range(3)})
    assert place.pins() == []
