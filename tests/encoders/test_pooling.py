import jax.numpy as jnp
import numpy as np
import pytest

from jaxval.encoders.pooling import normalize, pool, truncate
from jaxval.errors import EncoderError

HIDDEN = jnp.array([[[1.0, 2.0], [3.0, 6.0], [50.0, 70.0]]])
RIGHT = jnp.array([[True, True, False]])
LEFT = jnp.array([[False, True, True]])
NOTHING = jnp.zeros((1, 3), bool)


@pytest.mark.parametrize(
    ("how", "mask", "expected"),
    [
        ("cls", RIGHT, [1, 2]),
        ("mean", RIGHT, [2, 4]),
        ("last", RIGHT, [3, 6]),
        ("last", LEFT, [50, 70]),
        ("last", ~NOTHING, [50, 70]),
    ],
)
def test_pooling_by_hand(how, mask, expected):
    np.testing.assert_array_equal(pool(HIDDEN, mask, how), [expected])


@pytest.mark.parametrize("how", ["cls", "mean", "last"])
def test_vectors_of_padding_are_finite(how):
    assert np.isfinite(normalize(pool(HIDDEN, NOTHING, how))).all()


def test_the_mean_accumulates_in_float32():
    ones = jnp.ones((1, 1000, 1), jnp.bfloat16)  # bfloat16 counts to 256 and stays there.
    mean = pool(ones, jnp.ones((1, 1000), bool), "mean")
    assert mean.dtype == jnp.float32
    np.testing.assert_array_equal(mean, [[1.0]])


def test_padding_that_is_nan_does_not_change_the_mean():
    hidden = HIDDEN.at[0, 2].set(jnp.nan)
    np.testing.assert_array_equal(pool(hidden, RIGHT, "mean"), [[2, 4]])


def test_the_error_for_an_unknown_pooling_lists_the_known_ones():
    with pytest.raises(EncoderError, match="choose one of cls, mean, last"):
        pool(HIDDEN, RIGHT, "max")


def test_truncation_comes_before_normalization():
    vectors = jnp.array([[3.0, 4.0, 12.0]])
    np.testing.assert_allclose(normalize(truncate(vectors, 2)), [[0.6, 0.8]], rtol=1e-6)


def test_normalize_accepts_zero_and_bfloat16():
    vectors = jnp.array([[0.0, 0.0], [3.0, 4.0]], jnp.bfloat16)
    unit = normalize(vectors)
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, [[0, 0], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("dim", [0, 4, -1])
def test_truncation_out_of_range_is_an_error(dim):
    with pytest.raises(EncoderError, match="from 1 to 3"):
        truncate(jnp.ones((1, 3)), dim)
