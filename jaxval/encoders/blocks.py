"""What the families are built of: layers, norms, stacks, and where a token stands.

Every family keeps the parameter names of its transformers model, so each names its own
parts; what they have in common is here.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
# (flax is skipped by mypy, so nn.Module and nn.compact are Any to it.)

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
    """The exact one. flax's takes erfc, which keeps digits far below what is added to it
    afterwards, and costs twice as much on CPU.
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
"""`hidden_act` of config.json -> function. `gelu` is the exact one, with erf."""


class Part(nn.Module):
    """What each part of a model has: the config, the dtype and the layers it may use.

    Parameters have the dtype of the computation, so that a restore casts once and no
    batch casts again; norms keep theirs in float32, and take their statistics in it.

    Attributes:
      config: the family's record.
      dtype: of the computation, float32 or bfloat16.
      attend: how attention is computed.
    """

    config: Any
    dtype: Any = jnp.float32
    attend: Attend = plain

    def part(self, kind: type[Part], name: str) -> Any:
        """A part with the same config, dtype and attention."""
        return kind(self.config, self.dtype, self.attend, name=name)

    def stack(self, kind: type[Part], name: str) -> Any:
        """The model's layers, named 0, 1, 2, …, each given the states of the one before."""
        return _Stack(self.config, self.dtype, self.attend, kind, name=name)

    def dense(self, width: int, name: str = "dense", bias: bool = True) -> Any:
        """A dense layer."""
        init = nn.initializers.normal(self.config.initializer_range)
        dtypes = {"dtype": self.dtype, "param_dtype": self.dtype}
        return nn.Dense(width, use_bias=bias, kernel_init=init, name=name, **dtypes)

    def table(self, rows: int, width: int, name: str) -> Any:
        """An embedding."""
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Embed(rows, width, param_dtype=self.dtype, embedding_init=init, name=name)

    def norm(self, name: str = "LayerNorm") -> Any:
        """A layer norm."""
        return nn.LayerNorm(self.config.layer_norm_eps, dtype=self.dtype, name=name)

    def rms_norm(self, name: str) -> Any:
        """A norm that neither centers nor shifts."""
        return _RmsNorm(self.config.rms_norm_eps, self.dtype, name=name)

    def attention(
        self,
        hidden: jax.Array,
        mask: jax.Array,
        names: Sequence[str],
        *,
        width: int | None = None,
        biased: bool = True,
        **how: Any,
    ) -> jax.Array:
        """What all heads attend to, side by side, [batch, length, heads · width].

        Args:
          hidden: [batch, length, hidden].
          mask: [batch, length].
          names: of the dense layers that make query, key and value.
          width: of a head; None for an equal share of hidden.
          biased: whether those layers have biases.
          how: for `attend`.
        """
        heads = self.config.num_attention_heads
        whole = hidden.shape[2] if width is None else heads * width
        query, key, value = (
            split(self.dense(whole, name, biased)(hidden), heads) for name in names
        )
        return self.attend(query, key, value, mask, **how).reshape(*hidden.shape[:2], -1)

    def relative_bias(self, length: int, count: int, furthest: int) -> jax.Array:
        """A learned bias a head by how far the key is from the query; [heads, length, length].

        Args:
          length: of the texts.
          count: buckets of distances, rows of the table.
          furthest: the distance from which on all are alike.
        """
        heads = self.config.num_attention_heads
        table = self.table(count, heads, "relative_attention_bias")
        by_distance: jax.Array = table(jnp.asarray(buckets(length, count, furthest)))
        here = jnp.arange(length)
        return by_distance.T[:, here[None, :] - here[:, None] + length - 1].astype(jnp.float32)


class _Stack(Part):
    kind: type[Part] = Part

    @nn.compact
    def __call__(self, hidden: jax.Array, *same: Any) -> jax.Array:
        for number in range(self.config.num_hidden_layers):
            hidden = self.part(self.kind, str(number))(hidden, *same)
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
    """[batch, length, heads · width] -> [batch, length, heads, width]."""
    return states.reshape(*states.shape[:2], heads, -1)


def check_length(ids: jax.Array, limit: Limit) -> None:
    """Raises EncoderError if texts, ids [batch, length], are longer than a model takes."""
    if ids.shape[1] > limit.tokens:
        raise EncoderError(
            f"texts of {ids.shape[1]} tokens, but the model has {limit}: lower "
            "`query_max_len` and `passage_max_len`"
        )


def buckets(length: int, count: int, furthest: int) -> np.ndarray:
    """The bucket of each distance of a key from its query, -length + 1 to length - 1.

    Half of them are for keys behind the query. Of each half, half are for one distance
    each, the others for ever wider ranges. In float32, as the models were trained with;
    source: `_relative_position_bucket` of transformers' modeling_t5.py.
    """
    distance = np.arange(1 - length, length)
    half, exact = count // 2, count // 4
    away = np.maximum(np.abs(distance), 1).astype(np.float32)
    spread = np.float32(math.log(furthest / exact))
    far = exact + (np.log(away / np.float32(exact)) / spread * (half - exact)).astype(int)
    near = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(far, half - 1))
    return half * (distance > 0) + near
