"""A backbone with its head: pooling, projection, truncation, normalization, in that order.

The order and the names are those of sentence-transformers' modules.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxval.encoders.pooling import normalize, pool, truncate

ACTIVATIONS = {"identity": lambda vectors: vectors, "tanh": jnp.tanh}
"""What may follow a projection."""


@dataclass(frozen=True)
class Projection:
    """A dense layer over pooled vectors (`2_Dense` of sentence-transformers).

    Attributes:
      width: components of its result.
      bias: whether it has one.
      activation: a key of ACTIVATIONS.
    """

    width: int
    bias: bool
    activation: str


class TextEncoder(nn.Module):
    """(ids [batch, length] int32, mask [batch, length] bool) -> [batch, dim] float32.

    The backbone's parameters stand at the root of the tree, so that a checkpoint of the
    bare backbone fits; the projection's stand beside them, in `projection`.

    Attributes:
      backbone: a linen module from (ids, mask) to token states [batch, length, hidden].
      pooling: `cls`, `mean` or `last`.
      projection: None for none.
      dim: Matryoshka truncation; None keeps all components.
      normalized: whether vectors get unit length.
    """

    backbone: nn.Module
    pooling: str
    projection: Projection | None = None
    dim: int | None = None
    normalized: bool = False

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Vectors of texts.

        Raises:
          EncoderError: pooling or dim does not fit.
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
