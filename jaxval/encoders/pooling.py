"""From token states to one vector per text: pool, truncate, normalize, in that order.

All three accumulate in float32 and return float32, whatever dtype the states have.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxval.errors import EncoderError


def pool(hidden: jax.Array, mask: jax.Array, how: str) -> jax.Array:
    """One vector per row: [batch, length, dim] -> [batch, dim] float32.

    Args:
      hidden: token states, [batch, length, dim], floating.
      mask: [batch, length] bool, False on padding. A row that is all padding gives a
        finite vector, of no meaning.
      how: `cls`, the first position; `mean`, over unpadded positions; `last`, the last
        unpadded position, whether padding stands right or left.

    Raises:
      EncoderError: `how` is none of these.
    """
    if how not in POOLINGS:
        raise EncoderError(f"pooling {how!r} is unknown: choose one of {', '.join(POOLINGS)}")
    return POOLINGS[how](hidden, mask).astype(jnp.float32)


def _cls(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    del mask  # The first position, as sentence-transformers takes it.
    return hidden[:, 0]


def _mean(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(mask[:, :, None], hidden, 0), axis=1, dtype=jnp.float32)
    count = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
    return total / jnp.maximum(count, 1.0)


def _last(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    position = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]


POOLINGS = {"cls": _cls, "mean": _mean, "last": _last}


def truncate(vectors: jax.Array, dim: int | None) -> jax.Array:
    """The first `dim` components, [batch, dim] (Matryoshka); all of them for None.

    Comes before `normalize`: a truncated unit vector is no unit vector.

    Raises:
      EncoderError: the vectors have fewer components than that.
    """
    if dim is None:
        return vectors
    if not 1 <= dim <= vectors.shape[1]:
        raise EncoderError(
            f"cannot truncate vectors of {vectors.shape[1]} components to {dim}: "
            f"choose a dimension from 1 to {vectors.shape[1]}"
        )
    return vectors[:, :dim]


def normalize(vectors: jax.Array) -> jax.Array:
    """Unit length in L2, [batch, dim] float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    length = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.maximum(length, 1e-12)
