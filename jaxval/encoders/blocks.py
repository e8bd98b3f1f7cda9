"""Building blocks that the families share: layers, norms, stacks and position biases.

Each family names its parts itself, because it keeps the parameter names of transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
# (mypy skips flax, so nn.Module and nn.compact have the type Any.)

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxval.encoders.attention import Attend, plain
from jaxval.encoders.entries import Limit
from jaxval.errors import EncoderError


def _gelu(inputs: jax.Array) -> jax.Array:
    """Computes the exact GELU.

    flax.linen.gelu uses erfc, which takes twice the time on CPUs, for digits that are lost in
    the following addition.
    """
    return 0.5 * inputs * (1 + jax.lax.erf(inputs * 0.5**0.5))


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": nn.tanh,
}
"""`hidden_act` of config.json -> function; `gelu` is the exact one, with erf."""


class Part(nn.Module):
    """The base class of all parts of a model.

    Parameters have the dtype of the computation, so that they are cast once, when they are
    restored. Norms have float32 parameters, and compute their statistics in float32.

    Attributes:
      config: The family's record of config.json.
      dtype: The dtype of the computation, float32 or bfloat16.
      attend: The function that computes attention.
    """

    config: Any
    dtype: Any = jnp.float32
    attend: Attend = plain

    def part(self, kind: type[Part], name: str) -> Any:
        """Returns a part with the same config, dtype and attention."""
        return kind(self.config, self.dtype, self.attend, name=name)

    def stack(self, kind: type[Part], name: str) -> Any:
        """Returns the model's layers as one part, in which they are named 0, 1, 2, …."""
        return _Stack(self.config, self.dtype, self.attend, kind, name=name)

    def dense(self, width: int, name: str = "dense", bias: bool = True) -> Any:
        """Returns a dense layer."""
        init = nn.initializers.normal(self.config.initializer_range)
        dtypes = {"dtype": self.dtype, "param_dtype": self.dtype}
        return nn.Dense(width, use_bias=bias, kernel_init=init, name=name, **dtypes)

    def table(self, rows: int, width: int, name: str) -> Any:
        """Returns a table of embeddings."""
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Embed(rows, width, param_dtype=self.dtype, embedding_init=init, name=name)

    def norm(self, name: str = "LayerNorm") -> Any:
        """Returns a layer norm."""
        return nn.LayerNorm(self.config.layer_norm_eps, dtype=self.dtype, name=name)

    def rms_norm(self, name: str) -> Any:
        """Returns an RMS norm, which neither centers nor shifts."""
        return _RmsNorm(self.config.rms_norm_eps, self.dtype, name=name)

    def attention(
        self,
        hidden: jax.Array,
        mask: jax.Array,
        names: Sequence[str],
        *,
        width: int | None = None,
        biased: bool = True,
        **options: Any,
    ) -> jax.Array:
        """Returns the attended values of all heads, [batch, length, heads * width].

        Args:
          hidden: [batch, length, hidden].
          mask: [batch, length] bool, False on padding.
          names: The names of the dense layers for query, key and value.
          width: The components of a head; None for hidden / heads.
          biased: Whether these dense layers have a bias.
          **options: Further arguments of `attend`.
        """
        heads = self.config.num_attention_heads
        total = hidden.shape[2] if width is None else heads * width
        query, key, value = (
            split(self.dense(total, name, biased)(hidden), heads) for name in names
        )
        return self.attend(query, key, value, mask, **options).reshape(*hidden.shape[:2], -1)

    def relative_bias(self, length: int, count: int, max_distance: int) -> jax.Array:
        """Returns the learned bias by the distance of key and query, [heads, length, length].

        Args:
          length: The length of the texts.
          count: The number of buckets of distances, which are the rows of the table.
          max_distance: The distance from which on all are in one bucket.
        """
        heads = self.config.num_attention_heads
        table = self.table(count, heads, "relative_attention_bias")
        by_distance: jax.Array = table(jnp.asarray(buckets(length, count, max_distance)))
        position = jnp.arange(length)
        distance = position[None, :] - position[:, None]
        return by_distance.T[:, distance + length - 1].astype(jnp.float32)


class _Stack(Part):
    kind: type[Part] = Part

    @nn.compact
    def __call__(self, hidden: jax.Array, *arguments: Any) -> jax.Array:
        for number in range(self.config.num_hidden_layers):
            hidden = self.part(self.kind, str(number))(hidden, *arguments)
        return hidden


class _RmsNorm(nn.Module):
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones, hidden.shape[-1:])
        hidden = hidden.astype(jnp.float32)
        square = jnp.square(hidden).mean(axis=-1, keepdims=True)
        normed = hidden * jax.lax.rsqrt(square + self.epsilon)
        return (normed * jnp.expand_dims(weight, range(hidden.ndim - 1))).astype(self.dtype)


def split(states: jax.Array, heads: int) -> jax.Array:
    """Reshapes [batch, length, heads * width] to [batch, length, heads, width]."""
    return states.reshape(*states.shape[:2], heads, -1)


def check_length(ids: jax.Array, limit: Limit) -> None:
    """Raises EncoderError if texts, ids [batch, length], are too long for a model."""
    if ids.shape[1] > limit.tokens:
        raise EncoderError(
            f"texts of {ids.shape[1]} tokens, but the model has {limit}: lower "
            "`query_max_len` and `passage_max_len`"
        )


def buckets(length: int, count: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each distance between key and query, [2 * length - 1] int.

    The distances are -length + 1 to length - 1. Half of the buckets are for keys after the
    query. In each half, the first half of buckets is for one distance each, and the others
    are for ranges that grow logarithmically. The computation is in float32, as in training;
    source: `_relative_position_bucket` in modeling_t5.py of transformers.

    Args:
      length: The length of the texts.
      count: The number of buckets.
      max_distance: The distance from which on all are in one bucket.
    """
    distance = np.arange(1 - length, length)
    half, exact = count // 2, count // 4
    away = np.maximum(np.abs(distance), 1).astype(np.float32)
    spread = np.float32(math.log(max_distance / exact))
    far = exact + (np.log(away / np.float32(exact)) / spread * (half - exact)).astype(int)
    near = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(far, half - 1))
    return half * (distance > 0) + near
