"""Tests of preparing an evaluation: the encoder, its texts, and what is handed on."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxval.config import Evaluation, Model, Search, Texts
from jaxval.encoders.adapter import FunctionEncoder
from jaxval.errors import EncoderError
from jaxval.evaluation.prepare import prepare, read
from jaxval.records import DatasetFiles

GOLDENS = Path(__file__).parents[1] / "encoders" / "goldens"


@pytest.fixture
def model(tmp_path):
    """The golden BERT with a prompt for queries and one for documents."""
    folder = Path(shutil.copytree(GOLDENS / "bert", tmp_path / "model"))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


@pytest.fixture
def config(tmp_path, beir, model):
    data = beir()
    files = (data / "corpus.jsonl", data / "queries.jsonl", data / "qrels" / "test.tsv")
    return Evaluation(
        datasets=(DatasetFiles("tiny", *files),),
        model=Model(folder=str(model)),
        texts=Texts(passage_max_len=12, query_max_len=12, token_dir=tmp_path / "tokens"),
        search=Search(depth=10, measures=("RR@10",)),
    )


def prefixes(config, silent):
    prepared = prepare(config, lambda: jax.devices()[:1], silent)
    (settings,) = prepared.settings.values()
    return settings["query texts"]["prefix"], settings["passages"]["prefix"]


def changed(config, **texts):
    return dataclasses.replace(config, texts=dataclasses.replace(config.texts, **texts))


def test_the_folders_prompts_are_the_prefixes_and_are_logged(config, silent, caplog):
    with caplog.at_level(logging.INFO):
        assert prefixes(config, silent) == ("query: ", "passage: ")
    assert "query prefix: 'query: ' (from `model`)" in caplog.text


def test_settings_override_the_folders_prompts_even_if_empty(config, silent, caplog):
    with caplog.at_level(logging.INFO):
        actual = prefixes(changed(config, query_prefix="ask: ", passage_prefix=""), silent)
    assert actual == ("ask: ", "")
    assert "query prefix: 'ask: ' (from `query_prefix`)" in caplog.text
    assert (
        "passage prefix: none (from `passage_prefix`); `model` has 'passage: '" in caplog.text
    )


def test_without_prompts_there_is_no_prefix(config, silent, model):
    (model / "config_sentence_transformers.json").unlink()
    assert prefixes(config, silent) == ("", "")


def test_a_length_beyond_the_models_limit_is_an_error(config, silent):
    with pytest.raises(
        EncoderError, match="`query_max_len=41`: the model has 40 positions; set"
    ):
        prefixes(changed(config, query_max_len=41), silent)


def test_the_default_length_is_within_the_models_limit(config, silent):
    config = changed(config, query_max_len=None, passage_max_len=None)
    prepared = prepare(config, lambda: jax.devices()[:1], silent)
    (settings,) = prepared.settings.values()
    lengths = settings["query texts"]["max_len"], settings["passages"]["max_len"]
    assert lengths == (40, 40)  # usually 64 and 256


def own_encoder(width=4):
    """An encoder as an object: the mean of rows of a table."""

    def encode(params, ids, mask):
        return (params["table"][ids] * mask[..., None]).sum(1)

    shapes = {"table": jax.ShapeDtypeStruct((30, width), "bfloat16")}
    return FunctionEncoder(encode, encode, lambda: shapes)


def with_encoder(config, tokenizer_folder, **model):
    model = Model(tokenizer=str(tokenizer_folder), **model)
    return dataclasses.replace(config, model=model)


def test_an_encoder_may_be_given_as_an_object(config, silent, tokenizer_folder):
    own = with_encoder(config, tokenizer_folder, encoder=own_encoder())
    prepared = prepare(own, lambda: jax.devices()[:1], silent)
    assert prepared.folder is None
    assert prepared.plan.abstract_params["table"].dtype == "float32"  # as `dtype` says
    identity = prepared.encoding.identity
    assert identity["encoder"] == "FunctionEncoder"
    assert "source" not in identity
    assert read(own).encoding.identity == identity
    wider = read(with_encoder(config, tokenizer_folder, encoder=own_encoder(width=5)))
    assert wider.encoding.identity != identity


def test_an_object_that_does_not_encode_is_an_error(config, tokenizer_folder):
    flat = FunctionEncoder(lambda *_: jnp.zeros(3), lambda *_: jnp.zeros(3), dict)
    with pytest.raises(EncoderError, match="`encoder`: encoding queries returned"):
        read(with_encoder(config, tokenizer_folder, encoder=flat))


def test_inputs_that_were_read_are_not_read_again(config, silent, monkeypatch):
    inputs = read(config)

    def fail(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr("jaxval.evaluation.prepare.load_queries", fail)
    monkeypatch.setattr("jaxval.encoders.folder.read", fail)
    prepared = prepare(config, lambda: jax.devices()[:1], silent, inputs)
    (prepared_set,) = prepared.sets
    assert prepared_set.queries is inputs.queries[0]
    assert prepared_set.files is config.datasets[0]
    assert prepared.encoding is inputs.encoding
    assert prepared.folder.path == Path(config.model.folder)
    assert prepared.settings == {prepared_set.eval_set.series: prepared_set.settings}
