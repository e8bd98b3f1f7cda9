"""A backbone with its head: pooling, projection, truncation and normalization.

Their order and names are those of the modules of sentence-transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxval.encoders.pooling import normalize, pool, truncate

ACTIVATIONS = {"identity": lambda vectors: vectors, "tanh": jnp.tanh}
"""The activations that may follow a projection."""


@dataclass(frozen=True)
class Projection:
    """A dense layer over pooled vectors (`2_Dense` of sentence-transformers).

    Attributes:
      width: The number of components of its result.
      bias: Whether it has a bias.
      activation: A key of ACTIVATIONS.
    """

    width: int
    bias: bool
    activation: str


class TextEncoder(nn.Module):
    """A backbone and its head, from texts to vectors.

    The backbone's parameters are at the root of the tree, so that checkpoints without a
    projection fit. Those of the projection are below `projection`.

    Attributes:
      backbone: A linen module that maps (ids, mask) to token states [batch, length, hidden].
      pooling: `cls`, `mean` or `last`.
      projection: The dense layer over pooled vectors, or None.
      dim: The number of components that truncation keeps (Matryoshka); None for all.
      normalized: Whether vectors are scaled to unit length.
    """

    backbone: nn.Module
    pooling: str
    projection: Projection | None = None
    dim: int | None = None
    normalized: bool = False

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the vectors of texts, [batch, dim] float32.

        Args:
          ids: [batch, length] int32.
          mask: [batch, length] bool, False on padding.

        Raises:
          EncoderError: `pooling` is unknown, or `dim` is out of range.
        """
        nn.share_scope(self, self.backbone)
        vectors = pool(self.backbone(ids, mask), mask, self.pooling)
        if self.projection:
            dense = nn.Dense(
                self.projection.width, use_bias=self.projection.bias, name="projection"
            )
            vectors = ACTIVATIONS[self.projection.activation](dense(vectors))
        vectors = truncate(vectors, self.dim)
        return normalize(vectors) if self.normalized else vectors
