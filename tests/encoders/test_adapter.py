import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxval.encoders import factory
from jaxval.encoders.adapter import FunctionEncoder, from_linen, from_nnx
from jaxval.errors import EncoderError

IDS = jnp.array([[1, 2, 3], [3, 1, 0]], jnp.int32)
MASK = IDS > 0


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        hidden = nn.Embed(5, 4, name="words")(ids)
        return jnp.where(mask[:, :, None], hidden, 0).sum(1)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("vocab", "embed"))
        hidden = nn.Embed(5, 4, embedding_init=init, name="words")(ids)
        return jnp.where(mask[:, :, None], hidden, 0).sum(1)


class Untied(nn.Module):
    def setup(self):
        self.words = nn.Embed(5, 4)
        self.query_head = nn.Dense(2)
        self.passage_head = nn.Dense(2, use_bias=False)

    def queries(self, ids, mask):
        return self.query_head(jnp.where(mask[:, :, None], self.words(ids), 0).sum(1))

    def passages(self, ids, mask):
        return self.passage_head(jnp.where(mask[:, :, None], self.words(ids), 0).sum(1))


def ones(encoder):
    return jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), encoder.abstract_params()
    )


def test_a_tied_module():
    encoder = from_linen(Tied())
    shape = jax.ShapeDtypeStruct((5, 4), jnp.float32)
    assert encoder.abstract_params() == {"words": {"embedding": shape}}
    expected = [[3.0] * 4, [2.0] * 4]
    np.testing.assert_array_equal(encoder.encode_queries(ones(encoder), IDS, MASK), expected)
    np.testing.assert_array_equal(encoder.encode_passages(ones(encoder), IDS, MASK), expected)


def test_two_methods_have_the_union_of_their_trees():
    encoder = from_linen(Untied(), query_method="queries", passage_method="passages")
    tree = encoder.abstract_params()
    assert {name: sorted(leaves) for name, leaves in tree.items()} == {
        "words": ["embedding"],
        "query_head": ["bias", "kernel"],
        "passage_head": ["kernel"],
    }
    params = ones(encoder)
    np.testing.assert_array_equal(encoder.encode_queries(params, IDS, MASK)[0], [13, 13])
    np.testing.assert_array_equal(encoder.encode_passages(params, IDS, MASK)[0], [12, 12])


def test_the_boxes_of_partitioned_parameters_are_removed():
    tree = from_linen(Boxed()).abstract_params()
    assert tree == from_linen(Tied()).abstract_params()


def test_an_encoder_runs_under_pmap():
    encoder = from_linen(Tied())
    devices = jax.devices()[:1]
    encode = jax.pmap(encoder.encode_passages, in_axes=(None, 0, 0), devices=devices)
    np.testing.assert_array_equal(encode(ones(encoder), IDS[None], MASK[None])[0, 1], [2] * 4)


def test_an_encoder_can_be_the_key_of_a_cache():
    encoder = FunctionEncoder(lambda p, i, m: i, lambda p, i, m: i, dict)
    assert {encoder: 1}[encoder] == 1


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(5, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = getattr(nnx, "List", list)([nnx.Linear(4, 4, rngs=rngs) for _ in "ab"])

    def __call__(self, ids, mask):
        states = self.dropout(self.words(ids))
        for layer in self.layers:
            states = layer(states)
        return jnp.where(mask[:, :, None], states, 0).sum(1)

    def doubled(self, ids, mask):
        return 2 * self(ids, mask)


@pytest.mark.parametrize("function", [True, False])
def test_an_nnx_module_encodes_in_evaluation_mode_with_the_params_of_its_state(function):
    model = Nnx(nnx.Rngs(0))
    encoder = from_nnx((lambda: Nnx(nnx.Rngs(0))) if function else model)
    factory.check(encoder, "--encoder=x:y")
    assert not model.dropout.deterministic  # the module that was passed does not change
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert encoder.abstract_params() == jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params
    )
    model.eval()
    for encode in (encoder.encode_queries, encoder.encode_passages):
        np.testing.assert_allclose(encode(params, IDS, MASK), model(IDS, MASK), rtol=1e-6)


def test_the_methods_of_an_nnx_module_are_names_or_functions():
    encoder = from_nnx(
        lambda: Nnx(nnx.Rngs(0)),
        query_method="doubled",
        passage_method=lambda model, ids, mask: 3 * model(ids, mask),
    )
    params = ones(encoder)
    single = from_nnx(lambda: Nnx(nnx.Rngs(0))).encode_queries(params, IDS, MASK)
    np.testing.assert_allclose(encoder.encode_queries(params, IDS, MASK), 2 * single)
    np.testing.assert_allclose(encoder.encode_passages(params, IDS, MASK), 3 * single)


class NnxSharded(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.ones, ("vocab", "embed"))
        self.words = nnx.Embed(5, 4, embedding_init=init, rngs=rngs)

    def __call__(self, ids, mask):
        return jnp.where(mask[:, :, None], self.words(ids), 0).sum(1)


def test_the_sharding_annotations_of_an_nnx_module_have_no_effect():
    encoder, plain = from_nnx(lambda: NnxSharded(nnx.Rngs(0))), from_linen(Tied())
    assert encoder.abstract_params() == plain.abstract_params()
    np.testing.assert_array_equal(
        encoder.encode_queries(ones(encoder), IDS, MASK),
        plain.encode_queries(ones(plain), IDS, MASK),
    )


class NnxNormed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)


class NnxConstant(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(5, 4, rngs=rngs)
        self.shift = jnp.full(4, 7.0)

    def __call__(self, ids, mask):
        return self.words(ids).sum(1) + self.shift[None]


class NnxRandom(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(5, 4, rngs=rngs)
        self.rngs = rngs

    def __call__(self, ids, mask):
        return self.words(ids).sum(1) + jax.random.normal(self.rngs(), (1, 4))


def test_the_constants_of_an_nnx_module_are_kept():
    encoder = from_nnx(NnxConstant(nnx.Rngs(0)))
    assert list(encoder.abstract_params()) == ["words"]
    np.testing.assert_array_equal(encoder.encode_queries(ones(encoder), IDS, MASK), 10.0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Nnx, r"the class Nnx: pass a function .*from_nnx\(lambda: Nnx\("),
        (dict, r"the class dict"),
        (lambda: 3, "a function that returns a int: return an nnx.Module"),
        (
            lambda: NnxNormed(nnx.Rngs(0)),
            "NnxNormed has BatchStat at norm/mean.* `jaxval.FunctionEncoder`",
        ),
        (NnxNormed(nnx.Rngs(0)), "NnxNormed has BatchStat at norm/mean"),
        (
            lambda: NnxConstant(nnx.Rngs(0)),
            "NnxConstant has an array at shift.* pass the module itself",
        ),
    ],
)
def test_unsupported_nnx_modules_raise_an_error_with_a_remedy(module, message):
    with pytest.raises(EncoderError, match=message):
        from_nnx(module)


@pytest.mark.parametrize(
    "module",
    [lambda: NnxRandom(nnx.Rngs(0)), NnxRandom(nnx.Rngs(0))],
    ids=["function", "module"],
)
def test_an_nnx_module_that_draws_random_numbers_fails_in_check(module):
    with pytest.raises(EncoderError, match="must not .* draw random numbers"):
        factory.check(from_nnx(module), "--encoder=x:y")


def test_shapes_are_computed_without_opening_a_device():
    # No such platform exists, so anything that opens a device raises.
    script = (
        "import flax.linen as nn, jax, jaxval\n"
        "from jaxval.encoders import factory\n"
        "class Words(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, ids, mask):\n"
        "        return nn.Embed(9, 4)(ids).mean(1)\n"
        "encoder = jaxval.from_linen(Words())\n"
        "factory.check(encoder, 'words')\n"
        "print(jax.tree.leaves(encoder.abstract_params())[0].shape)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
        capture_output=True,
        text=True,
    )
    assert (ran.stdout, ran.returncode) == ("(9, 4)\n", 0), ran.stderr
