"""All families, compared with goldens of PyTorch models (scripts/make_goldens.py)."""

import functools
import json
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
from jaxval.encoders.attention import plain
from jaxval.errors import EncoderError

GOLDENS = Path(__file__).parent / "goldens"
TREES = json.loads((GOLDENS / "flax_trees.json").read_text())
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
OTHERS = [name for name in NAMES if name != "bert"]
ALIKE = ("xlm-roberta", "t5-gated", "mistral")  # they share the code of another family
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
EITHER_SIDE = ("roberta", "mpnet", "t5", *DECODERS)


@functools.cache
def described(name):
    return folder.read(str(GOLDENS / name))


@functools.cache
def golden(name):
    return dict(np.load(GOLDENS / name / "golden.npz"))


@functools.cache
def params(name):
    return folder.load_weights(described(name))[0]


@functools.cache
def encode(name):
    """Encodes to unit vectors, so that tolerances mean the same for all families."""
    encoder = folder.build(described(name), normalize=True)
    return functools.partial(jax.jit(encoder.encode_passages), params(name))


def backbone(name, dtype="float32"):
    model = described(name)
    return folder.FAMILIES[model.family].backbone(model.config, jnp.dtype(dtype), plain)


def cast(tree, shapes):
    return jax.tree.map(lambda shape, leaf: jnp.asarray(leaf, shape.dtype), shapes, tree)


def test_every_family_has_a_golden():
    assert {described(name).family for name in NAMES} == set(folder.FAMILIES)


@pytest.mark.parametrize("name", OTHERS)
def test_token_states_equal_those_of_pytorch(name):
    of = golden(name)
    out = jax.jit(backbone(name).apply)({"params": params(name)}, of["ids"], of["mask"])
    mask = of["mask"]
    np.testing.assert_allclose(out[mask], of["last_hidden_state"][mask], atol=2e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_token_states_in_bfloat16_have_nearly_the_same_direction(name):
    of, module = golden(name), backbone(name, "bfloat16")
    tree = {part: leaf for part, leaf in params(name).items() if part != "projection"}
    tree = cast(tree, from_linen(module).abstract_params())
    out = jax.jit(module.apply)({"params": tree}, of["ids"], of["mask"])[of["mask"]]
    assert out.dtype == jnp.bfloat16
    actual, expected = np.asarray(out, np.float32).ravel(), of["last_hidden_state"][of["mask"]]
    cosine = actual @ expected.ravel() / np.linalg.norm(actual) / np.linalg.norm(expected)
    assert cosine > 0.999


@pytest.mark.parametrize("name", [name for name in OTHERS if "vectors" in golden(name)])
def test_vectors_equal_those_of_sentence_transformers(name):
    of = golden(name)
    encoder = folder.build(described(name))
    tree = params(name)
    vectors = jax.jit(encoder.encode_queries)(tree, of["ids"], of["mask"])
    np.testing.assert_allclose(vectors, of["vectors"], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_norms_stay_in_float32(name):
    tree = from_linen(backbone(name, "bfloat16")).abstract_params()
    leaves = traverse_util.flatten_dict(tree)
    norms = {path for path in leaves if any("norm" in part.lower() for part in path)}
    assert norms
    assert {leaves[path].dtype for path in norms} == {jnp.dtype("float32")}
    assert {leaves[path].dtype for path in set(leaves) - norms} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", TREES)
def test_the_tree_equals_that_of_the_flax_model_of_transformers(name):
    tree = traverse_util.flatten_dict(from_linen(backbone(name)).abstract_params(), sep="/")
    theirs = {path: shape for path, shape in TREES[name].items() if "pooler" not in path}
    assert {path: list(leaf.shape) for path, leaf in tree.items()} == theirs


@pytest.mark.parametrize("name", ["mpnet", "qwen2", "qwen3"])
def test_the_tree_equals_that_of_the_pytorch_model(name):
    tree = traverse_util.flatten_dict(from_linen(backbone(name)).abstract_params(), sep=".")
    leaves = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
    ours = {
        ".".join([*path.split(".")[:-1], leaves.get(path.split(".")[-1], path.split(".")[-1])])
        for path in tree
    }
    state = folder._safetensors(GOLDENS / name)
    assert ours == {key for key in state if "pooler" not in key}


@settings(max_examples=8)
@given(
    text=st.lists(st.integers(5, 23), min_size=7, max_size=7),
    width=st.sampled_from([8, 16]),
    row=st.integers(0, 2),
    filler=st.integers(0, 23),
)
@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ALIKE])
def test_vectors_do_not_depend_on_padding_or_row(name, text, width, row, filler):
    alone = np.array([text], np.int32)
    ids = np.full((3, width), filler, np.int32)
    mask = np.ones((3, width), bool)
    ids[row, : len(text)] = text
    mask[row, len(text) :] = False
    expected = encode(name)(alone, np.ones_like(alone, bool))[0]
    np.testing.assert_allclose(encode(name)(ids, mask)[row], expected, atol=5e-6)


@pytest.mark.parametrize("name", EITHER_SIDE)
def test_states_do_not_depend_on_the_side_of_padding(name):
    of = golden(name)
    rows = zip(of["ids"], of["mask"], strict=True)
    ids = np.stack([np.roll(row, -kept.sum()) for row, kept in rows])
    mask = of["mask"][:, ::-1]
    apply = jax.jit(backbone(name).apply)
    right = apply({"params": params(name)}, of["ids"], of["mask"])
    left = apply({"params": params(name)}, ids, mask)
    np.testing.assert_allclose(left[mask], right[of["mask"]], atol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_the_last_token_is_pooled_with_padding_on_either_side(name):
    of = golden(name)
    text = of["ids"][:1, :7]
    left = np.concatenate([np.full((1, 5), 3, np.int32), text], axis=1)
    right = np.concatenate([text, np.full((1, 5), 3, np.int32)], axis=1)
    mask = np.arange(12)[None] < 7
    assert described(name).pooling == "last"
    expected = encode(name)(right, mask)
    np.testing.assert_allclose(encode(name)(left, mask[:, ::-1]), expected, atol=5e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_the_vector_of_a_row_of_padding_is_finite(name):
    nothing = np.zeros((3, 8), np.int32)
    assert np.isfinite(encode(name)(nothing, nothing > 0)).all()


def configure(family, **entries):
    return folder.FAMILIES[family].configure({"model_type": family, **entries})


@pytest.mark.parametrize(
    ("family", "entries", "message"),
    [
        ("roberta", {"position_embedding_type": "relative_key"}, "by the roberta encoder"),
        ("distilbert", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds True"),
        ("distilbert", {"activation": "laplace"}, "activation 'laplace'"),
        ("distilbert", {"dim": 10, "n_heads": 4}, "hidden_size 10 is not a multiple"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "num_buckets 64"),
        ("t5", {"feed_forward_proj": "gated-laplace"}, "feed_forward_proj 'gated-laplace'"),
        ("llama", {"hidden_act": "laplace"}, "hidden_act 'laplace'"),
        ("llama", {"mlp_bias": True}, "mlp_bias True"),
        ("qwen2", {"is_causal": False}, "is_causal False"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ("qwen3", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (
            "llama",
            {"num_attention_heads": 6, "hidden_size": 8},
            "hidden_size 8 is not a multiple",
        ),
        ("mistral", {"num_key_value_heads": 5}, "num_key_value_heads 5"),
        ("llama", {"head_dim": 5}, "head_dim 5 is not a multiple"),
    ],
)
def test_unsupported_configs_are_an_error(family, entries, message):
    with pytest.raises(EncoderError, match=message) as caught:
        configure(family, **entries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "entries", "limit"),
    [
        ("roberta", {"max_position_embeddings": 514}, "512 positions"),
        ("mpnet", {"max_position_embeddings": 514, "pad_token_id": 0}, "512 positions"),
        ("t5", {"n_positions": 512}, "None"),
        (
            "mistral",
            {},
            "4096 positions in its sliding window, and longer texts are unsupported",
        ),
        ("mistral", {"sliding_window": None}, "131072 positions"),
        ("mistral", {"sliding_window": 99, "max_position_embeddings": 64}, "64 positions"),
        ("qwen2", {"sliding_window": 64}, "32768 positions"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 32}, "32768 positions"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 64},
            "64 positions in its sliding window, and longer texts are unsupported",
        ),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": ["full_attention"] * 32,
            },
            "32768 positions",
        ),
    ],
)
def test_the_maximum_length_of_a_text(family, entries, limit):
    assert str(configure(family, **entries).limit) == limit


def test_a_text_longer_than_the_window_is_an_error():
    config = configure("mistral", sliding_window=8, vocab_size=9, num_hidden_layers=1)
    ids = jax.ShapeDtypeStruct((1, 9), jnp.int32), jax.ShapeDtypeStruct((1, 9), bool)
    module = folder.FAMILIES["mistral"].backbone(config, "float32", plain)
    with pytest.raises(EncoderError, match="9 tokens, but the model has 8 positions in its sl"):
        jax.eval_shape(module.init, jax.random.key(0), *ids)


def test_rotations_are_read_from_entries_of_transformers_4_and_5():
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    old = configure("llama", rope_theta=5e5, rope_scaling=scaling)
    assert old == configure("llama", rope_parameters={"rope_theta": 5e5, **scaling})
    linear = {"type": "linear", "factor": 2.0}
    half = configure("llama", rope_scaling=linear).rope.frequencies(8)
    np.testing.assert_allclose(2 * half, configure("llama").rope.frequencies(8))


def test_the_word_table_of_t5_has_two_names():
    state = dict(folder._safetensors(GOLDENS / "t5"))
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    state |= {"decoder.block.0.x": np.zeros(1), "lm_head.weight": np.zeros(1)}
    family = folder.FAMILIES["t5"]
    tree, ignored = folder.from_torch(state, backbone("t5"), family.words)
    assert ignored == ["decoder.block.0.x", "lm_head.weight"]
    assert tree.keys() == {"encoder", "shared"}
    expected = params("t5")["shared"]["embedding"]
    np.testing.assert_array_equal(tree["shared"]["embedding"], expected)


def test_weights_of_a_language_model_have_a_prefix():
    state = {f"model.{name}": a for name, a in folder._safetensors(GOLDENS / "qwen2").items()}
    state["lm_head.weight"] = np.zeros(1)
    words = folder.FAMILIES["qwen2"].words
    tree, ignored = folder.from_torch(state, backbone("qwen2"), words)
    assert ignored == ["lm_head.weight"]
    jax.tree.map(np.testing.assert_array_equal, tree, params("qwen2"))
