"""Tests of the evaluation on parts of a corpus, by one encoding."""

import jax
import numpy as np
import pytest

from jaxval.checkpoints.restore import Restored
from jaxval.errors import UserError
from jaxval.evaluation.validate import validate
from jaxval.sampling.subsets import attempt, subset
from tests.evaluation.letters import (
    DEV,
    PASSAGES,
    count_letters,
    letters,
    make_eval_set,
    make_plan,
)

RESTORED = Restored(letters(), "params", seconds=5.0)


def test_a_subset_knows_its_passages_and_tokens(store):
    corpus = store(PASSAGES)
    part = subset(corpus, np.array([3, 0]))
    assert part.mask.tolist() == [True, False, False, True]
    assert (part.passages, part.tokens) == (2, 5 + 4)  # with [CLS] and [SEP] each


def test_each_subset_has_the_values_of_a_search_in_only_its_passages(store, silent):
    corpus = store(PASSAGES)
    plan = make_plan((corpus, [make_eval_set(store, "dev", DEV)]), devices=2)
    whole, part = (subset(corpus, np.array(rows)) for rows in ([0, 1, 2, 3], [0, 2]))
    trial = attempt("step 7", RESTORED, plan, [whole, part], silent)
    assert trial.per_query[0]["RR"].tolist() == [1 / 2, 1 / 3]
    # In "a b" and "c" alone, "a" finds 0 first, and "c b" finds 0 before 2.
    assert trial.per_query[1]["RR"].tolist() == [1, 1 / 2]


def test_the_whole_corpus_has_the_values_of_a_validation(store, silent):
    corpus = store(PASSAGES)
    plan = make_plan((corpus, [make_eval_set(store, "dev", DEV)]))
    trial = attempt("", RESTORED, plan, [subset(corpus, np.arange(4))], silent)
    (result,) = validate("", RESTORED, plan, ["series of dev"], silent)
    for name, values in result.per_query.items():
        np.testing.assert_array_equal(trial.per_query[0][name], values)


def test_shared_stages_are_counted_once_and_the_search_for_each_subset(store, silent):
    corpus = store(PASSAGES)
    plan = make_plan((corpus, [make_eval_set(store, "dev", DEV)]))
    parts = [subset(corpus, np.arange(count)) for count in (4, 1)]
    trial = attempt("", RESTORED, plan, parts, silent)
    assert trial.shared.keys() == {"restore", "queries", "passages"}
    assert trial.shared["restore"] > 5
    assert len(trial.own) == 2
    assert all(seconds > 0 for seconds in trial.own)


def test_the_batch_is_halved_until_it_fits(store, silent, caplog):
    def encode(params, ids, mask):
        if ids.size > limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return count_letters(params, ids, mask)

    corpus, limit = store(PASSAGES * 10), 100
    plan = make_plan(
        (corpus, [make_eval_set(store, "dev", DEV)]), batch_tokens=256, encode=encode
    )
    trial = attempt("", RESTORED, plan, [subset(corpus, np.arange(4))], silent)
    assert trial.per_query[0]["RR"].tolist() == [1 / 2, 1 / 3]
    assert plan.passage_tower.batch_tokens == 64
    limit = 4
    plan = make_plan((corpus, [make_eval_set(store, "dev", DEV)]), encode=encode)
    with pytest.raises(UserError, match="too little memory"):
        attempt("", RESTORED, plan, [subset(corpus, np.arange(4))], silent)
