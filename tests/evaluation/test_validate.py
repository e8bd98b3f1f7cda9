"""Tests of the evaluation of one set of parameters, with values that are computed by hand."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxval.checkpoints.restore import Restored, fitted
from jaxval.errors import MismatchError, NonFiniteError, UserError
from jaxval.evaluation.validate import compiling_ahead, validate
from jaxval.records import Checkpoint
from tests.evaluation.letters import (
    DEV,
    PASSAGES,
    SPECIAL,
    TEST,
    count_letters,
    letters,
    make_eval_set,
    make_plan,
)


@pytest.fixture
def eval_set(store):
    return functools.partial(make_eval_set, store)


def results(plan, progress, restored=None, wanted=None):
    """The results of all sets by name."""
    restored = restored or Restored(letters(), "params")
    wanted = [eval_set.series for eval_set in plan.sets] if wanted is None else wanted
    evaluated = validate("step 7", restored, plan, wanted, progress)
    return {result.eval_set.name: result for result in evaluated}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("batch_tokens", [8, 64])
def test_values_are_those_by_hand(store, eval_set, silent, devices, batch_tokens):
    plan = make_plan(
        (store(PASSAGES), [eval_set("dev", DEV)]), devices=devices, batch_tokens=batch_tokens
    )
    (result,) = results(plan, silent).values()
    assert result.hits.rows.tolist() == [[1, 0, 2, 3], [3, 0, 2, 1]]
    assert result.hits.scores.tolist() == [[2, 1, 0, 0], [3, 1, 1, 0]]
    assert result.per_query["RR"].tolist() == [1 / 2, 1 / 3]
    assert result.per_query["R@2"].tolist() == [1, 0]
    assert result.per_query["nDCG"] == pytest.approx([1 / math.log2(3), 1 / math.log2(4)])
    assert result.measures["RR"] == pytest.approx(5 / 12)


def test_cosine_divides_by_the_lengths(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]), similarity="cosine")
    (result,) = results(plan, silent).values()
    # "c b": 2 / √2 for "c", 3 / √2 √5 for "b c c", 1 / 2 for "a b".
    assert result.hits.rows.tolist() == [[1, 0, 2, 3], [3, 2, 0, 1]]
    assert result.per_query["RR"].tolist() == [1 / 2, 1 / 2]


def test_the_depth_limits_the_hits(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]), depth=2)
    (result,) = results(plan, silent).values()
    assert result.hits.rows.tolist() == [[1, 0], [3, 0]]
    assert result.per_query["RR"].tolist() == [1 / 2, 0]


def test_a_missing_document_counts_as_never_found(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", {"a": {1: 1, -1: 1}})]))
    (result,) = results(plan, silent).values()
    assert result.per_query["R@2"].tolist() == [1 / 2]


class Recorder:
    """A Progress that records the labels of its bars, with the number of units."""

    def __init__(self, silent):
        self.bars = []
        self._silent = silent

    def __call__(self, label, total):
        self.bars.append((label, total))
        return self._silent()


def test_sets_of_one_corpus_share_its_encoding(store, eval_set, silent):
    dev, test = eval_set("dev", DEV), eval_set("test", TEST)
    other = eval_set("other", {"b": {0: 1}})
    plan = make_plan((store(PASSAGES), [dev, test]), (store(["b", "b b", "c"]), [other]))
    progress = Recorder(silent)
    by_name = results(plan, progress)
    assert progress.bars == [
        ("step 7: encoding queries", 2),
        ("step 7: encoding queries", 1),
        ("step 7: encoding passages", 4),
        ("step 7: encoding queries", 1),
        ("step 7: encoding passages", 3),
    ]
    assert by_name["dev"].per_query["RR"].tolist() == [1 / 2, 1 / 3]
    assert by_name["test"].hits.rows.tolist() == [[0, 3, 1, 2]]
    assert by_name["test"].per_query["R@2"].tolist() == [1 / 2]
    assert by_name["other"].hits.rows.tolist() == [[1, 0, 2]]
    assert by_name["other"].per_query["RR"].tolist() == [1 / 2]
    assert by_name["dev"].seconds["passages"] == by_name["test"].seconds["passages"]


def test_only_wanted_series_are_evaluated(store, eval_set, silent):
    dev, test = eval_set("dev", DEV), eval_set("test", TEST)
    plan = make_plan((store(PASSAGES), [dev, test]))
    progress = Recorder(silent)
    assert list(results(plan, progress, wanted=["series of test"])) == ["test"]
    assert [total for _, total in progress.bars] == [1, 4]
    assert results(plan, progress, wanted=[]) == {}


def test_a_series_that_is_removed_while_iterating_is_not_evaluated(store, eval_set, silent):
    dev, other = eval_set("dev", DEV), eval_set("other", TEST)
    plan = make_plan((store(PASSAGES), [dev]), (store(["b", "c"]), [other]))
    wanted = {dev.series, other.series}
    restored = Restored(letters(), "params")
    names = []
    for result in validate("step 7", restored, plan, wanted, silent):
        names.append(result.eval_set.name)
        wanted.discard(other.series)
    assert names == ["dev"]


def test_only_candidates_are_scored(store, eval_set, silent):
    candidates = (np.array([3, 0]), np.array([1, 2, 3]))
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV, candidates)]))
    (result,) = results(plan, silent).values()
    assert result.hits.rows.tolist() == [[0, 3, -1], [3, 2, 1]]
    assert result.per_query["RR"].tolist() == [1, 1 / 2]


def test_towers_with_separate_parameters(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]))
    towers = {"query": letters(skip="b"), "passage": letters()}
    (result,) = results(plan, silent, Restored(towers, "two", untied=True)).values()
    # Without "b", the query "c b" is "c".
    assert result.hits.rows.tolist() == [[1, 0, 2, 3], [3, 2, 0, 1]]


def test_parameters_in_memory_need_no_checkpoint(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]))
    state = {"step": np.int32(3), "model": {"params": jax.tree.map(jnp.asarray, letters())}}
    (result,) = results(plan, silent, fitted(state, plan.abstract_params)).values()
    assert result.params_at == "model/params"
    assert result.per_query["RR"].tolist() == [1 / 2, 1 / 3]
    with pytest.raises(MismatchError):
        fitted({"other": np.zeros(3)}, plan.abstract_params)


def test_a_result_becomes_the_validation_of_a_checkpoint(store, eval_set, silent, tmp_path):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]))
    (result,) = results(plan, silent, Restored(letters(), "params", seconds=5.0)).values()
    checkpoint = Checkpoint(7, "7", 1, tmp_path)
    validation = result.validation(checkpoint)
    assert validation.checkpoint is checkpoint
    assert (validation.dataset, validation.series) == ("dev", "series of dev")
    assert (validation.passages, validation.queries) == (4, 2)
    assert validation.params_at == "params"
    assert validation.measures == result.measures
    stages = {"restore", "queries", "passages", "search", "measures"}
    assert validation.seconds.keys() == stages
    assert validation.seconds["restore"] > 5
    assert all(seconds > 0 for seconds in validation.seconds.values())


def test_parameters_that_are_not_finite(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]))
    params = letters()
    params["table"][SPECIAL] = np.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        results(plan, silent, Restored(params, "params"))


def test_compiling_ahead_changes_no_value(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]), devices=2)
    with compiling_ahead(plan):
        (result,) = results(plan, silent).values()
    assert result.per_query["RR"].tolist() == [1 / 2, 1 / 3]


# Too little memory


def full(*_):
    """Raises what XLA raises when the memory of a device is full."""
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying ...")


def limited(tokens):
    """The encoder on a device with memory for so many tokens per batch."""

    def encode(params, ids, mask):
        return full() if ids.size > tokens else count_letters(params, ids, mask)

    return encode


def halvings(caplog):
    return [
        record.args[0] for record in caplog.records if "out of memory" in record.getMessage()
    ]


def test_the_batch_is_halved_until_it_fits_and_stays_so(store, eval_set, silent, caplog):
    corpus = store(PASSAGES * 10)
    plan = make_plan((corpus, [eval_set("dev", DEV)]), batch_tokens=1024, encode=limited(100))
    with caplog.at_level(logging.WARNING):
        (result,) = results(plan, silent).values()
    assert halvings(caplog) == [512, 256, 128, 64]
    assert "64 tokens per batch (`batch_tokens`)" in caplog.text
    # Ten passages are "a a", and their order is that of the corpus.
    assert result.hits.rows[0].tolist() == list(range(1, 40, 4))
    caplog.clear()
    results(plan, silent)
    assert halvings(caplog) == []


def test_too_little_memory_for_the_smallest_batch(store, eval_set, silent):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]), encode=limited(4))
    with pytest.raises(UserError, match="too little memory for the smallest batch.*`devices`"):
        results(plan, silent)


def test_parameters_that_do_not_fit_into_memory(store, eval_set, silent, monkeypatch):
    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]))
    monkeypatch.setattr("jaxval.evaluation.memory.place", full)
    with pytest.raises(UserError, match="parameters do not fit .*`dtype=bfloat16`"):
        results(plan, silent)


def test_another_error_of_the_device_is_raised_as_it_is(store, eval_set, silent):
    def broken(params, ids, mask):
        raise jax.errors.JaxRuntimeError("INTERNAL: failed")

    plan = make_plan((store(PASSAGES), [eval_set("dev", DEV)]), encode=broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        results(plan, silent)
