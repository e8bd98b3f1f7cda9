"""A plan whose values can be computed by hand.

A text's vector counts its letters. So a passage's score is the number of pairs of equal
letters, one of the query and one of the passage.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxval.evaluation.encode import Tower
from jaxval.evaluation.plan import CorpusGroup, EvalPlan, EvalSet
from jaxval.metrics.measures import parse
from jaxval.metrics.ranks import Judgments
from jaxval.records import ParamsPaths, Text

VOCABULARY, SPECIAL = 30, 4
"""The tiny tokenizer's ids, and how many of them are special tokens."""

PASSAGES = ("a b", "a a", "c", "b c c")
DEV = {"a": {0: 1}, "c b": {2: 1}}
TEST = {"b": {3: 2, 1: 1}}
"""Sets on PASSAGES: query -> row -> grade.

By descending score, with equal scores in document order, the queries find:

    "a"    rows 1 0 2 3    scores 2 1 0 0
    "c b"  rows 3 0 2 1    scores 3 1 1 0
    "b"    rows 0 3 1 2    scores 1 1 0 0
"""


def letters(skip=""):
    """Returns one-hot vectors of the letters; zeros for special tokens and skipped letters."""
    table = np.eye(VOCABULARY, dtype=np.float32)
    table[[*range(SPECIAL), *(SPECIAL + ord(letter) - ord("a") for letter in skip)]] = 0
    return {"table": table}


def count_letters(params, ids, mask):
    """The encoder."""
    return jnp.where(mask[..., None], params["table"][ids], 0).sum(1)


def make_eval_set(store, name, judged, candidates=None):
    """Returns a set of query -> row -> grade. The row -1 means a missing document."""
    entries = [
        (number, row, grade)
        for number, grades in enumerate(judged.values())
        for row, grade in grades.items()
    ]
    query, row, grade = np.array(entries, np.int64).T
    ids = tuple(f"{name}{number}" for number in range(len(judged)))
    queries = store([Text(id_, text) for id_, text in zip(ids, judged, strict=True)])
    judgments = Judgments(query, row, grade, len(judged))
    return EvalSet(name, f"series of {name}", queries, ids, judgments, candidates)


def make_plan(
    *groups,
    devices=1,
    batch_tokens=64,
    encode=count_letters,
    similarity="dot",
    depth=10,
    measures=("RR", "nDCG", "R@2"),
):
    """Returns a plan of (corpus, sets) pairs."""
    devices = tuple(jax.devices()[:devices])
    table = jax.ShapeDtypeStruct((VOCABULARY, VOCABULARY), jnp.float32)
    return EvalPlan(
        abstract_params={"table": table},
        query_tower=Tower(encode, devices, batch_tokens),
        passage_tower=Tower(encode, devices, batch_tokens),
        groups=tuple(CorpusGroup(corpus, tuple(sets)) for corpus, sets in groups),
        devices=devices,
        params_paths=ParamsPaths(),
        base=None,
        similarity=similarity,
        index_dtype="float32",
        depth=depth,
        measures=tuple(parse(measures, depth)),
    )
