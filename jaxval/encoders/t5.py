"""T5's encoder, with the parameter names of FlaxT5EncoderModel of transformers 4.

GTR and Sentence-T5 use it with mean pooling and a projection. A decoder in the checkpoint is
not read. Scores are not scaled, and all layers share the first layer's bias by distance.
Equations: `modeling_t5.py` of huggingface/transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import flax.linen as nn
import jax

from jaxval.encoders.blocks import ACTIVATIONS, Part
from jaxval.encoders.entries import read, require

_RENAMED = {
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "d_kv": "head_dim",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "rms_norm_eps",
}


@dataclass(frozen=True)
class T5Config:
    """The entries of config.json that define the encoder, with the defaults of transformers.

    Attributes:
      vocab_size: Rows of the table of word embeddings.
      hidden_size: Components of a token state.
      num_hidden_layers: Number of layers.
      num_attention_heads: Heads of each attention.
      head_dim: Components of a head.
      intermediate_size: Components between the dense layers of a feed-forward part.
      feed_forward_proj: A key of blocks.ACTIVATIONS, after `gated-` if it is gated.
      buckets: Buckets of distances for the bias.
      max_distance: The distance from which on all are in one bucket.
      rms_norm_eps: The epsilon of norms.
      initializer_range: The standard deviation of initial parameters.
    """

    vocab_size: int = 32128
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 2048
    feed_forward_proj: str = "relu"
    buckets: int = 32
    max_distance: int = 128
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Reads the entries of config.json, and ignores those that have no effect here.

        Raises:
          EncoderError: They describe a model that is not supported.
        """
        known = [*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)]
        require(config, "feed_forward_proj", known, "relu")
        return read(cls, config, renamed=_RENAMED)

    @property
    def limit(self) -> None:
        """The maximum length of a text; None, as there are no position embeddings."""


class T5(Part):
    """T5's encoder without a head, from texts to token states.

    Texts may have any amount of padding on either side, which does not change the states of
    other positions.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the token states, [batch, length, hidden].

        Args:
          ids: [batch, length] int32.
          mask: [batch, length] bool, False on padding.
        """
        hidden = self.table(self.config.vocab_size, self.config.hidden_size, "shared")(ids)
        return self.part(_Encoder, "encoder")(hidden, mask)  # type: ignore[no-any-return]


class _Encoder(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = self.part(_Blocks, "block")(hidden, mask)
        return self.rms_norm("final_layer_norm")(hidden)  # type: ignore[no-any-return]


class _Blocks(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        bias = None
        for number in range(self.config.num_hidden_layers):
            hidden, bias = self.part(_Block, str(number))(hidden, mask, bias)
        return hidden


class _Block(Part):
    @nn.compact
    def __call__(
        self, hidden: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        return self.part(_Sublayers, "layer")(hidden, mask, bias)  # type: ignore[no-any-return]


class _Sublayers(Part):
    @nn.compact
    def __call__(
        self, hidden: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        hidden, bias = self.part(_Attention, "0")(hidden, mask, bias)
        return self.part(_FeedForward, "1")(hidden), bias


class _Attention(Part):
    @nn.compact
    def __call__(
        self, hidden: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        normed = self.rms_norm("layer_norm")(hidden)
        attended, bias = self.part(_SelfAttention, "SelfAttention")(normed, mask, bias)
        return hidden + attended, bias


class _SelfAttention(Part):
    @nn.compact
    def __call__(
        self, hidden: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        config = self.config
        if bias is None:
            bias = self.relative_bias(hidden.shape[1], config.buckets, config.max_distance)
        sizes = {"width": config.head_dim, "biased": False}
        attended = self.attention(hidden, mask, ("q", "k", "v"), bias=bias, scale=1.0, **sizes)
        return self.dense(config.hidden_size, "o", bias=False)(attended), bias


class _FeedForward(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        normed = self.rms_norm("layer_norm")(hidden)
        return hidden + self.part(_Dense, "DenseReluDense")(normed)  # type: ignore[no-any-return]


class _Dense(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        width = self.config.intermediate_size
        _, gated, name = self.config.feed_forward_proj.rpartition("gated-")
        # transformers computes a gated gelu by the approximation.
        activation = ACTIVATIONS["gelu_new" if gated and name == "gelu" else name]
        if gated:
            inner = activation(self.dense(width, "wi_0", bias=False)(hidden))
            inner = inner * self.dense(width, "wi_1", bias=False)(hidden)
        else:
            inner = activation(self.dense(width, "wi", bias=False)(hidden))
        return self.dense(self.config.hidden_size, "wo", bias=False)(inner)  # type: ignore[no-any-return]
