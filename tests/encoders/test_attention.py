import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.encoders.attention import cudnn, fastest, plain


def some(length, width, seed=0, dtype=np.float32):
    numbers = np.random.default_rng(seed).standard_normal((3, 2, length, 3, width), np.float32)
    return [jnp.asarray(each, dtype) for each in numbers]


def test_two_positions_by_hand():
    query = jnp.array([2.0, 0.0]).reshape(1, 2, 1, 1)
    key = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    value = jnp.array([10.0, 20.0]).reshape(1, 2, 1, 1)
    first = np.exp(2) / (np.exp(2) + 1)
    found = plain(query, key, value, jnp.ones((1, 2), bool)).ravel()
    np.testing.assert_allclose(found, [10 * first + 20 * (1 - first), 15], rtol=1e-6)
    alone = plain(query, key, value, jnp.array([[True, False]])).ravel()
    np.testing.assert_allclose(alone, [10, 10], rtol=1e-6)


@given(st.integers(1, 20), st.sampled_from([1, 8, 32]), st.integers(1, 20), st.integers(0, 99))
def test_it_is_the_attention_of_jax(length, width, unpadded, seed):
    query, key, value = some(length, width, seed)
    mask = jnp.arange(length)[None] < jnp.array([[unpadded], [length]])
    expected = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
    np.testing.assert_allclose(plain(query, key, value, mask), expected, atol=2e-6)


def test_large_scores_do_not_overflow():
    query, key, value = (1e4 * each for each in some(6, 8))
    assert np.isfinite(plain(query, key, value, jnp.ones((2, 6), bool))).all()


@pytest.mark.parametrize(("width", "dtype"), [(8, jnp.float32), (12, jnp.bfloat16)])
def test_cudnn_leaves_what_it_cannot_take(width, dtype):
    given = [*some(6, width, dtype=dtype), jnp.ones((2, 6), bool)]
    np.testing.assert_array_equal(cudnn(*given), plain(*given))


def test_a_cpu_computes_it_plainly():
    assert fastest(jax.devices()[0]) is plain


def test_a_gpu_without_cudnn_computes_it_plainly(caplog):
    with caplog.at_level(logging.WARNING):
        assert fastest(SimpleNamespace(platform="gpu")) is plain
    assert "cuDNN's does not run here" in caplog.text


@pytest.mark.gpu
def test_a_gpu_computes_it_by_cudnn():
    devices = [each for each in jax.devices() if each.platform == "gpu"]
    if not devices:
        pytest.skip("JAX finds no GPU")
    assert fastest(devices[0]) is cudnn
