"""Pooling, truncation and normalization, which make one vector of a text's token states.

They are applied in this order, compute in float32 and return float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxval.errors import EncoderError


def pool(hidden: jax.Array, mask: jax.Array, how: str) -> jax.Array:
    """Returns one vector for each text, [batch, dim] float32.

    Args:
      hidden: Token states, [batch, length, dim], floating.
      mask: [batch, length] bool, False on padding. The vector of a row that is all padding is
        finite, but has no meaning.
      how: `cls` for the first position, `mean` for the mean over unpadded positions, `last`
        for the last unpadded position; padding may be on either side.

    Raises:
      EncoderError: `how` is unknown.
    """
    if how not in POOLINGS:
        raise EncoderError(f"pooling {how!r} is unknown; choose one of {', '.join(POOLINGS)}")
    return POOLINGS[how](hidden, mask).astype(jnp.float32)


def _cls(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    del mask  # As in sentence-transformers, this is the first position, padded or not.
    return hidden[:, 0]


def _mean(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(mask[:, :, None], hidden, 0), axis=1, dtype=jnp.float32)
    count = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
    return total / jnp.maximum(count, 1.0)


def _last(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    position = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]


POOLINGS = {"cls": _cls, "mean": _mean, "last": _last}
"""Name -> function of token states and mask."""


def truncate(vectors: jax.Array, dim: int | None) -> jax.Array:
    """Returns the first `dim` components of each vector (Matryoshka), or all if it is None.

    A truncated unit vector is not a unit vector, so truncation precedes `normalize`.

    Raises:
      EncoderError: The vectors have fewer than `dim` components, or `dim` is not positive.
    """
    if dim is None:
        return vectors
    if not 1 <= dim <= vectors.shape[1]:
        raise EncoderError(
            f"cannot truncate vectors of {vectors.shape[1]} components to {dim}; choose `dim`"
            f" from 1 to {vectors.shape[1]}"
        )
    return vectors[:, :dim]


def normalize(vectors: jax.Array) -> jax.Array:
    """Scales vectors to unit L2 norm, [batch, dim] float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    length = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.maximum(length, 1e-12)
