import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.encoders.attention import cudnn, cudnn_unless_causal, fastest, plain

PLAIN = jax.jit(plain, static_argnames=("causal", "scale"))
JAX = jax.jit(jax.nn.dot_product_attention, static_argnames=("is_causal", "scale"))


def qkv(length, width, seed=0, dtype=np.float32, heads=3):
    shape = 3, 2, length, heads, width
    numbers = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return [jnp.asarray(states, dtype) for states in numbers]


def test_two_positions_by_hand():
    query = jnp.array([2.0, 0.0]).reshape(1, 2, 1, 1)
    key = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    value = jnp.array([10.0, 20.0]).reshape(1, 2, 1, 1)
    first = np.exp(2) / (np.exp(2) + 1)
    actual = plain(query, key, value, jnp.ones((1, 2), bool)).ravel()
    np.testing.assert_allclose(actual, [10 * first + 20 * (1 - first), 15], rtol=1e-6)
    alone = plain(query, key, value, jnp.array([[True, False]])).ravel()
    np.testing.assert_allclose(alone, [10, 10], rtol=1e-6)


@given(
    length=st.sampled_from([1, 7, 20]),
    width=st.sampled_from([1, 32]),
    keys=st.sampled_from([1, 2, 4]),
    biased=st.booleans(),
    causal=st.booleans(),
    unpadded=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_attention_equals_that_of_jax(length, width, keys, biased, causal, unpadded, seed):
    query, key, value = qkv(length, width, seed, heads=4)
    key, value = key[:, :, :keys], value[:, :, :keys]
    random = np.random.default_rng(seed + 1)
    bias = random.standard_normal((4, length, length), np.float32) if biased else None
    mask = jnp.arange(length)[None] < jnp.array([[unpadded], [length]])
    actual = PLAIN(query, key, value, mask, bias=bias, causal=causal, scale=0.5)
    options = {"bias": None if bias is None else bias[None], "is_causal": causal, "scale": 0.5}
    mask = mask[:, None, None, :]
    expected = JAX(query, key, value, mask=mask, **options)
    np.testing.assert_allclose(actual, expected, atol=4e-6)


def test_the_default_scale_depends_on_the_width():
    query, key, value = qkv(5, 16)
    mask = jnp.ones((2, 5), bool)
    expected = plain(query, key, value, mask, scale=0.25)
    np.testing.assert_array_equal(plain(query, key, value, mask), expected)


def test_large_scores_do_not_overflow():
    query, key, value = (1e4 * states for states in qkv(6, 8))
    assert np.isfinite(plain(query, key, value, jnp.ones((2, 6), bool))).all()


@pytest.mark.parametrize(
    ("width", "dtype", "bias"),
    [
        (8, jnp.float32, None),
        (12, jnp.bfloat16, None),
        (8, jnp.bfloat16, jnp.ones((3, 6, 6), jnp.float32)),
    ],
)
def test_inputs_that_cudnn_does_not_support_use_plain_attention(width, dtype, bias):
    given = [*qkv(6, width, dtype=dtype), jnp.ones((2, 6), bool)]
    options = {"bias": bias, "causal": True, "scale": 0.5}
    np.testing.assert_array_equal(cudnn(*given, **options), plain(*given, **options))


def test_cudnn_unless_causal_does_not_use_cudnn_for_decoders():
    given = [*qkv(6, 8, dtype=jnp.bfloat16), jnp.ones((2, 6), bool)]
    actual = cudnn_unless_causal(*given, causal=True)
    np.testing.assert_array_equal(actual, plain(*given, causal=True))


def test_a_cpu_uses_plain_attention():
    assert fastest(jax.devices()[0]) is plain


def test_a_gpu_without_cudnn_uses_plain_attention(caplog):
    with caplog.at_level(logging.WARNING):
        assert fastest(SimpleNamespace(platform="gpu")) is plain
    assert "cuDNN attention is unavailable on this device; using XLA" in caplog.text


@pytest.mark.gpu
def test_a_gpu_uses_cudnn():
    devices = [device for device in jax.devices() if device.platform == "gpu"]
    if not devices:
        pytest.skip("JAX finds no GPU")
    assert fastest(devices[0]) is cudnn
