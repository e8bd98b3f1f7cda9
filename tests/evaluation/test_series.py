"""Tests of the identity of a series."""

import dataclasses
import json
from dataclasses import field, make_dataclass, replace
from pathlib import Path

import pytest

from jaxval.canonical import digest
from jaxval.config import Evaluation, Model, Search, Texts
from jaxval.corpus.datasets import QuerySet
from jaxval.corpus.token_store import Recipe
from jaxval.evaluation.encoding import Encoding, read_encoding
from jaxval.evaluation.series import VERSION, ranking_settings, series_settings
from jaxval.records import DatasetFiles, ParamsPaths

BERT = Path(__file__).parents[1] / "encoders" / "goldens" / "bert"
QUERIES = QuerySet("dev", (), {}, 0, 0, "digest of the queries")


@pytest.fixture
def encoding(tiny_tokenizer):
    return Encoding(
        build=lambda attend: None,
        tokenizer=replace(tiny_tokenizer, digest="digest of the tokenizer"),
        passages=Recipe("{title} {text}", "passage: ", 256),
        queries=Recipe("{text}", "query: ", 64),
        base=None,
        identity={"model": "digest of the model", "dtype": "float32"},
    )


@pytest.fixture
def evaluation(tmp_path):
    files = DatasetFiles("dev", tmp_path, tmp_path, tmp_path)
    return Evaluation((files,), Model(folder="model"))


def series(evaluation, encoding, candidates=None):
    return series_settings(
        evaluation, encoding, ["RR@10", "AP"], QUERIES, "digest of the corpus", candidates
    )


def with_field(record, **fields):
    """The record with new fields; each has its value as the default."""
    names = [(name, type(value), field(default=value)) for name, value in fields.items()]
    extended = make_dataclass(type(record).__name__, names, bases=(type(record),), frozen=True)
    return extended(**vars(record))


def test_the_record_does_not_change(evaluation, encoding):
    settings = series(evaluation, encoding)
    assert settings == {
        "version": 1,
        "dataset": "dev",
        "corpus": "digest of the corpus",
        "queries": "digest of the queries",
        "tokenizer": "digest of the tokenizer",
        "passages": {"template": "{title} {text}", "prefix": "passage: ", "max_len": 256},
        "query texts": {"template": "{text}", "prefix": "query: ", "max_len": 64},
        "encoder": {"model": "digest of the model", "dtype": "float32"},
        "similarity": "dot",
        "index_dtype": "float32",
        "depth": 100,
        "measures": ["AP", "RR@10"],
    }
    # A change of this digest means that no ledger's series goes on. Then VERSION has to rise.
    assert (VERSION, digest(settings)) == (1, "d33e5ca47d084c4e")
    assert json.loads(json.dumps(settings)) == settings


def test_the_order_of_the_keys_does_not_matter(evaluation, encoding):
    settings = series(evaluation, encoding)
    assert digest(dict(reversed(settings.items()))) == digest(settings)


def test_a_new_field_with_a_default_leaves_the_series_as_it_is(evaluation, encoding):
    before = digest(series(evaluation, encoding))
    new = replace(
        with_field(evaluation, new=1),
        model=with_field(evaluation.model, new="a"),
        texts=with_field(evaluation.texts, new=True),
        search=with_field(evaluation.search, new=0.5),
    )
    recipes = {
        name: with_field(getattr(encoding, name), new=0) for name in ("passages", "queries")
    }
    assert digest(series(new, replace(encoding, **recipes))) == before
    assert ranking_settings(new, replace(encoding, **recipes)) == ranking_settings(
        evaluation, encoding
    )
    set_to_2 = {name: replace(recipe, new=2) for name, recipe in recipes.items()}
    assert digest(series(new, replace(encoding, **set_to_2))) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda e, c: (e, replace(c, tokenizer=replace(c.tokenizer, digest="other"))),
        lambda e, c: (e, replace(c, passages=replace(c.passages, max_len=128))),
        lambda e, c: (e, replace(c, queries=replace(c.queries, prefix=""))),
        lambda e, c: (e, replace(c, identity=c.identity | {"dtype": "bfloat16"})),
        lambda e, c: (replace(e, search=replace(e.search, similarity="cosine")), c),
        lambda e, c: (replace(e, search=replace(e.search, index_dtype="float16")), c),
        lambda e, c: (replace(e, search=replace(e.search, depth=50)), c),
    ],
)
def test_what_changes_values_starts_a_new_series(evaluation, encoding, change):
    before = series(evaluation, encoding)
    after = series(*change(evaluation, encoding))
    assert digest(after) != digest(before)
    assert [name for name in before if before[name] != after[name]]


def test_candidates_are_part_of_the_series(evaluation, encoding):
    first = series(evaluation, encoding, {"q1": ("a", "b")})
    assert "candidates" not in series(evaluation, encoding)
    assert series(evaluation, encoding, {"q1": ("b", "a")}) == first  # their order is not
    assert series(evaluation, encoding, {"q1": ("a", "c")}) != first


IN_THE_SERIES = {
    Search: {"similarity", "index_dtype", "depth", "measures", "rerank"},
    Model: set(
        "folder factory encoder tokenizer params_paths dtype pooling normalize dim base_params"
        " lora_alpha".split()
    ),
    Texts: set(
        "passage_template passage_prefix query_prefix passage_max_len query_max_len".split()
    ),
    Evaluation: {"datasets", "model", "texts", "search"},
    ParamsPaths: {"tree", "query", "passage"},
}
CHANGES_NO_VALUE = {
    Texts: {"token_dir"},
    Evaluation: {"batch_tokens", "select_by", "confirm"},
}


@pytest.mark.parametrize("record", IN_THE_SERIES)
def test_of_each_setting_it_is_decided_whether_it_is_part_of_the_series(record):
    """A new setting fails here until it is in one of the two lists above."""
    names = {field.name for field in dataclasses.fields(record)}
    assert names == IN_THE_SERIES[record] | CHANGES_NO_VALUE.get(record, set())


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "cls"},
        {"normalize": False},
        {"dim": 8},
        {"dtype": "bfloat16"},
        {"params_paths": ParamsPaths(tree="ema_params")},
        {"params_paths": ParamsPaths(query="a", passage="b")},
    ],
)
def test_the_settings_of_the_encoder_are_part_of_its_identity(evaluation, change):
    plain, changed = (
        read_encoding(replace(evaluation, model=Model(folder=str(BERT), **settings))).identity
        for settings in ({}, change)
    )
    assert plain != changed
