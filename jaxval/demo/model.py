"""A small text encoder in Flax linen, without any dependency on jaxval."""

# mypy: allow-subclassing-any, allow-untyped-decorators, no-warn-return-any
# mypy skips flax, so nn.Module and nn.compact have type Any.

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    """A transformer block with LayerNorm before attention and before the feed-forward layer.

    Attributes:
      heads: Attention heads; must divide the width of the input.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the block's output, of the shape of `x`.

        Args:
          x: States [batch, length, dim].
          mask: True at tokens, False at padding; [batch, length].
        """
        dim = x.shape[-1]
        h = nn.LayerNorm()(x)
        h = nn.MultiHeadDotProductAttention(self.heads)(
            h, mask=nn.make_attention_mask(mask, mask)
        )
        x = x + h
        h = nn.LayerNorm()(x)
        h = nn.Dense(dim)(nn.gelu(nn.Dense(4 * dim)(h)))
        return x + h


class Model(nn.Module):
    """Encodes a text as the mean of its tokens' last states, scaled to length 1.

    Attributes:
      vocabulary: Number of token ids.
      max_len: Maximum length of a text in tokens.
      dim: Width of the states and of the vectors.
      layers: Number of blocks.
      heads: Attention heads of each block.
    """

    vocabulary: int = 8192
    max_len: int = 64
    dim: int = 128
    layers: int = 2
    heads: int = 2

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns vectors [batch, dim] float32.

        Args:
          ids: Token ids [batch, length].
          mask: True at tokens, False at padding; [batch, length].
        """
        x = nn.Embed(self.vocabulary, self.dim)(ids)
        x = x + nn.Embed(self.max_len, self.dim)(jnp.arange(ids.shape[1]))[None]
        for _ in range(self.layers):
            x = Block(self.heads)(x, mask)
        x = jnp.where(mask[..., None], nn.LayerNorm()(x), 0.0).sum(axis=1)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
