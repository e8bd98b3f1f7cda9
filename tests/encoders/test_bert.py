from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxval.encoders import folder
from jaxval.encoders.adapter import from_linen
from jaxval.encoders.bert import Bert, BertConfig
from jaxval.errors import EncoderError

GOLDENS = Path(__file__).parent / "goldens" / "bert"
DESCRIBED = folder.read(str(GOLDENS))
PARAMS, IGNORED = folder.load_weights(DESCRIBED)
ENCODE = jax.jit(folder.build(DESCRIBED).encode_passages)

ONE_LAYER = """
embeddings/LayerNorm/bias
embeddings/LayerNorm/scale
embeddings/position_embeddings/embedding
embeddings/token_type_embeddings/embedding
embeddings/word_embeddings/embedding
encoder/layer/0/attention/output/LayerNorm/bias
encoder/layer/0/attention/output/LayerNorm/scale
encoder/layer/0/attention/output/dense/bias
encoder/layer/0/attention/output/dense/kernel
encoder/layer/0/attention/self/key/bias
encoder/layer/0/attention/self/key/kernel
encoder/layer/0/attention/self/query/bias
encoder/layer/0/attention/self/query/kernel
encoder/layer/0/attention/self/value/bias
encoder/layer/0/attention/self/value/kernel
encoder/layer/0/intermediate/dense/bias
encoder/layer/0/intermediate/dense/kernel
encoder/layer/0/output/LayerNorm/bias
encoder/layer/0/output/LayerNorm/scale
encoder/layer/0/output/dense/bias
encoder/layer/0/output/dense/kernel
""".splitlines()[1:]


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDENS / "golden.npz")


def tiny(**changes):
    sizes = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 6}
    return BertConfig(**{**sizes, "num_attention_heads": 2, **changes})


def test_token_states_equal_those_of_pytorch(golden):
    out = Bert(DESCRIBED.config).apply({"params": PARAMS}, golden["ids"], golden["mask"])
    mask = golden["mask"]
    np.testing.assert_allclose(out[mask], golden["last_hidden_state"][mask], atol=1e-5)


def test_vectors_equal_those_of_sentence_transformers(golden):
    vectors = ENCODE(PARAMS, golden["ids"], golden["mask"])
    np.testing.assert_allclose(vectors, golden["vectors"], atol=1e-5)


def test_vectors_in_bfloat16_have_nearly_the_same_direction(golden):
    encoder = folder.build(DESCRIBED, dtype="bfloat16")
    params = jax.tree.map(
        lambda shape, leaf: jnp.asarray(leaf, shape.dtype), encoder.abstract_params(), PARAMS
    )
    vectors = encoder.encode_queries(params, golden["ids"], golden["mask"])
    assert vectors.dtype == jnp.float32
    assert (vectors * golden["vectors"]).sum(1).min() > 0.999


def test_bfloat16_keeps_layer_norms_in_float32():
    tree = from_linen(Bert(tiny(), jnp.dtype("bfloat16"))).abstract_params()
    dtypes = {path[-2:]: leaf.dtype for path, leaf in traverse_util.flatten_dict(tree).items()}
    assert dtypes["LayerNorm", "scale"] == jnp.float32
    assert dtypes["query", "kernel"] == jnp.bfloat16
    assert dtypes["word_embeddings", "embedding"] == jnp.bfloat16


def test_the_tree_equals_that_of_flax_bert_model():
    tree = from_linen(Bert(tiny())).abstract_params()
    assert sorted(traverse_util.flatten_dict(tree, sep="/")) == sorted(ONE_LAYER)


def test_a_pooler_in_the_tree_is_ignored(golden):
    with_pooler = {**PARAMS, "pooler": {"dense": {"bias": np.zeros(32)}}}
    vectors = ENCODE(with_pooler, golden["ids"], golden["mask"])
    np.testing.assert_allclose(vectors, golden["vectors"], atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    text=st.lists(st.integers(5, 59), min_size=1, max_size=12),
    width=st.sampled_from([12, 16, 40]),
    row=st.integers(0, 3),
    filler=st.integers(0, 59),
)
def test_vectors_do_not_depend_on_padding_or_row(text, width, row, filler):
    alone = np.array([text], np.int32)
    ids = np.full((4, width), filler, np.int32)
    mask = np.ones((4, width), bool)
    ids[row, : len(text)] = text
    mask[row, len(text) :] = False
    expected = ENCODE(PARAMS, alone, np.ones_like(alone, bool))[0]
    np.testing.assert_allclose(ENCODE(PARAMS, ids, mask)[row], expected, atol=2e-6)


def test_the_vector_of_a_row_of_padding_is_finite():
    nothing = np.zeros((1, 8), np.int32)
    assert np.isfinite(ENCODE(PARAMS, nothing, nothing > 0)).all()


def test_a_text_longer_than_the_positions_is_an_error():
    ids = jnp.zeros((1, 9), jnp.int32)
    with pytest.raises(EncoderError, match="9 tokens, but the model has 8 positions"):
        Bert(tiny(max_position_embeddings=8)).init(jax.random.key(0), ids, ids > 0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "laplace"}, "hidden_act 'laplace'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"hidden_size": 10, "num_attention_heads": 3}, "hidden_size 10 is not a multiple"),
    ],
)
def test_unsupported_configs_are_an_error(entries, message):
    with pytest.raises(EncoderError, match=message):
        BertConfig.from_json({"model_type": "bert", **entries})
