"""T5's encoder, under the parameter names of transformers 4's FlaxT5EncoderModel.

GTR and Sentence-T5 are this with mean pooling and a projection. A decoder in the
checkpoint is not asked for. Scores are not scaled, and the first layer's bias by distance
is that of all. Equations: `modeling_t5.py` of huggingface/transformers.
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
    "relative_attention_max_distance": "furthest",
    "layer_norm_epsilon": "rms_norm_eps",
}


@dataclass(frozen=True)
class T5Config:
    """The entries of config.json that shape the encoder, with transformers' defaults.

    Attributes:
      feed_forward_proj: an activation, or `gated-` and one.
      buckets, furthest: of distances, for the bias.
    """

    vocab_size: int = 32128
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 2048
    feed_forward_proj: str = "relu"
    buckets: int = 32
    furthest: int = 128
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Reads what config.json holds; entries that do not matter here are passed over.

        Raises:
          EncoderError: it describes a model that this module does not compute.
        """
        known = [*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)]
        require(config, "feed_forward_proj", known, "relu")
        return read(cls, config, renamed=_RENAMED)

    @property
    def limit(self) -> None:
        """A text may have any length: only distances count."""


class T5(Part):
    """(ids [batch, length] int32, mask [batch, length] bool) -> [batch, length, hidden].

    Padding may have any width on either side; it changes no unpadded position's state.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token states."""
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
        return self.part(_Halves, "layer")(hidden, mask, bias)  # type: ignore[no-any-return]


class _Halves(Part):
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
            bias = self.relative_bias(hidden.shape[1], config.buckets, config.furthest)
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
        # What transformers takes for it: the approximate one.
        activation = ACTIVATIONS["gelu_new" if gated and name == "gelu" else name]
        if gated:
            inner = activation(self.dense(width, "wi_0", bias=False)(hidden))
            inner = inner * self.dense(width, "wi_1", bias=False)(hidden)
        else:
            inner = activation(self.dense(width, "wi", bias=False)(hidden))
        return self.dense(self.config.hidden_size, "wo", bias=False)(inner)  # type: ignore[no-any-return]
