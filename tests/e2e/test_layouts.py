"""Layouts that change what is encoded with, from the files to the row."""

import tarfile
import threading
import time
from pathlib import Path

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.training import checkpoints as flax_checkpoints

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.restore import restore
from jaxval.encoders import folder
from tests.e2e import world
from tests.e2e.test_main import Run

FLAX_BERT = Path(__file__).parents[1] / "checkpoints" / "fixtures" / "flax_bert"


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def words(table):
    return {"words": {"embedding": table}}


def save(directory, step, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / str(step), tree)


def rows(run):
    return {line["step"]: line["measures"]["RR@10"] for line in run.lines()}


def finish(run, *extra, **flags):
    (run.checkpoints / "train_complete").touch()
    status, _, err = run.finish(*extra, **flags)
    assert status == 0, err
    return err


def test_each_of_two_towers_encodes_with_its_own_and_exports_do_too(run):
    for step in (1, 2):
        towers = [words(world.table(step)), words(world.table(step + 10))]
        save(run.checkpoints, step, {"params": {"params": towers}, "opt_state": [towers]})
    err = finish(run, "--keep_best=2")
    assert "parameters at params/params/0 (queries), params/params/1 (passages)" in err
    expected = {
        step: np.mean(world.reciprocal_ranks(world.table(step), world.table(step + 10)))
        for step in (1, 2)
    }
    assert rows(run) == pytest.approx(expected)
    best = run.output / "best"
    (best / "train_complete").touch()
    status, _, err = run.finish(checkpoint_dir=best, output_dir=run.root / "again")
    assert status == 0, err
    assert "parameters at params/query (queries), params/passage (passages)" in err
    run.output = run.root / "again"
    assert rows(run) == pytest.approx(expected)


def test_towers_whose_names_do_not_tell_are_named_by_flags(run):
    tree = {"a": words(world.table(11)), "b": words(world.table(1))}
    save(run.checkpoints, 1, tree)
    (run.checkpoints / "train_complete").touch()
    status, _, err = run.finish()
    assert status == 2
    assert "more than one subtree fits the encoder: a, b. Choose one for both" in err
    finish(run, query_params_path="b", passage_params_path="a")
    expected = world.reciprocal_ranks(world.table(1), world.table(11))
    assert rows(run) == pytest.approx({1: np.mean(expected)})


def test_tevaxs_dual_params_of_flax_bert_need_no_flag(run):
    """Written by transformers 4.57's FlaxBertModel: see scripts/make_fixtures.py."""
    with tarfile.open(FLAX_BERT / "dual.tar.gz") as tar:
        tar.extractall(run.checkpoints, filter="data")
    del run.flags["encoder"]
    finish(run, model=FLAX_BERT, query_max_len=8, passage_max_len=8, write_run="trec")
    encoder = folder.build(folder.read(str(FLAX_BERT)))
    (checkpoint,) = committed(run.checkpoints)
    towers = restore(checkpoint, encoder.abstract_params()).params
    vectors = {}
    for tower, texts in {"query": world.QUERIES, "passage": world.PASSAGES}.items():
        ids = np.array([padded(text, 6) for text in texts.values()])
        encoded = jax.jit(encoder.encode_queries)(towers[tower], ids, ids > 0)
        vectors |= dict(zip(texts, np.asarray(encoded), strict=True))
    ran = (run.output / "runs" / "tiny" / "3.trec").read_text().splitlines()
    assert len(ran) == len(world.QUERIES) * len(world.PASSAGES)
    for query, _, passage, _, score, _ in map(str.split, ran):
        assert float(score) == pytest.approx(vectors[query] @ vectors[passage], rel=1e-4)


def padded(text, length):
    ids = [2, *map(world.VOCABULARY.index, text.split()), 3]
    return ids + [0] * (length - len(ids))


def low_rank(step):
    rng = np.random.default_rng(step)
    return rng.normal(size=(len(world.VOCABULARY), 2)), rng.normal(size=(2, world.DIM))


def test_adapters_are_merged_into_their_base_once_for_each_checkpoint(run):
    save(run.root / "base", 0, {"params": words(world.table(0))})
    for step in (1, 2):
        left, right = low_rank(step)
        adapter = {"words": {"embedding": {"in_matrix": left, "out_matrix": right}}}
        save(run.checkpoints, step, {"lora": adapter})
    err = finish(run, base_params=run.root / "base", lora_alpha=3)
    assert "parameters at lora; adapters of rank 2, merged into 1 of 1 arrays" in err
    tables = {step: world.table(0) + 3 / 2 * np.matmul(*low_rank(step)) for step in (1, 2)}
    assert rows(run) == pytest.approx(
        {step: np.mean(world.reciprocal_ranks(table, table)) for step, table in tables.items()}
    )


def test_a_base_that_cannot_be_read_is_said_before_anything_is_watched(run):
    run.checkpoints.mkdir()
    status, _, err = run.finish(base_params="no/such", lora_alpha=3)
    assert status == 2
    (line,) = (line for line in err.splitlines() if line.startswith("jaxval: "))
    assert line.startswith(
        "jaxval: --base_params=no/such: there is neither an Orbax checkpoint"
    )
    assert "--model" not in line


def test_files_of_msgpack_are_watched_and_pinned_as_they_come(run):
    """flax.training.checkpoints, keeping one, as it was before it used Orbax."""
    run.checkpoints.mkdir()
    validator = run.start("--poll_interval=0.02")
    pins = run.output / "pins"
    flax.config.update("flax_use_orbax_checkpointing", False)
    for step in range(3):
        state = {"params": words(world.table(step)), "opt_state": words(world.table(9))}
        flax_checkpoints.save_checkpoint(run.checkpoints, state, step, keep=1)
        wait_for(
            lambda step=step: list(pins.glob(f"checkpoint_{step}.*")) or has_row(run, step)
        )
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint_2"]
    (run.checkpoints / "train_complete").touch()
    _, err = validator.communicate(timeout=60)
    assert validator.returncode == 0, err
    assert rows(run) == pytest.approx({s: np.mean(world.expected(s)) for s in range(3)})
    assert list(pins.iterdir()) == []


def has_row(run, step):
    return (run.output / "metrics.jsonl").exists() and step in rows(run)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
