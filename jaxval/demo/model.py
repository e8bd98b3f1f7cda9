"""A small text encoder in Flax linen, as a researcher would write it."""

# mypy: allow-subclassing-any, allow-untyped-decorators, no-warn-return-any
# (flax is skipped by mypy, so nn.Module and nn.compact are Any to it.)

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    """A transformer block with LayerNorm before each part; keeps the shape."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [batch, length, dim], mask [batch, length]."""
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
    """Word pieces to one vector of length 1: the mean of the last layer over the text."""

    vocabulary: int = 8192
    max_len: int = 64
    dim: int = 128
    layers: int = 2
    heads: int = 2

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """ids and mask [batch, length]; returns [batch, dim] float32."""
        x = nn.Embed(self.vocabulary, self.dim)(ids)
        x = x + nn.Embed(self.max_len, self.dim)(jnp.arange(ids.shape[1]))[None]
        for _ in range(self.layers):
            x = Block(self.heads)(x, mask)
        x = jnp.where(mask[..., None], nn.LayerNorm()(x), 0.0).sum(axis=1)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
