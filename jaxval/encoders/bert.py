"""BERT in Flax linen, with the parameter names of FlaxBertModel of transformers 4.

Checkpoints of FlaxBertModel can be restored without conversion; a pooler in them is not read.
There is no dropout. Equations: `modeling_bert.py` of huggingface/transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxval.encoders.blocks import ACTIVATIONS, Part, check_length
from jaxval.encoders.entries import Limit, read, require, require_multiple


@dataclass(frozen=True)
class BertConfig:
    """The entries of config.json that define the encoder, with the defaults of transformers.

    Attributes:
      vocab_size: Rows of the table of word embeddings.
      hidden_size: Components of a token state.
      num_hidden_layers: Number of layers.
      num_attention_heads: Heads of each attention.
      intermediate_size: Components between the dense layers of a feed-forward part.
      hidden_act: The activation between them, a key of blocks.ACTIVATIONS.
      max_position_embeddings: Rows of the table of position embeddings.
      type_vocab_size: Rows of the table of token types; 0 for a model without token types.
      layer_norm_eps: The epsilon of layer norms.
      initializer_range: The standard deviation of initial parameters.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        require_multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Reads the entries of config.json, and ignores those that have no effect here.

        Raises:
          EncoderError: They describe a model that is not supported.
        """
        require(config, "position_embedding_type", ["absolute"], "absolute")
        require(config, "is_decoder", [False], False)
        require(config, "hidden_act", ACTIVATIONS, "gelu")
        return read(cls, config)

    @property
    def limit(self) -> Limit:
        """The maximum length of a text."""
        return Limit(self.max_position_embeddings)


class Bert(Part):
    """BERT without a head, from texts to token states.

    Texts may have any amount of padding on the right, which does not change the states of
    other positions.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the token states, [batch, length, hidden].

        Args:
          ids: [batch, length] int32.
          mask: [batch, length] bool, False on padding.

        Raises:
          EncoderError: Length exceeds the number of position embeddings.
        """
        hidden = self.embedded(ids, mask)
        return self.part(_Encoder, "encoder")(hidden, mask)  # type: ignore[no-any-return]

    def embedded(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the states before the first layer, [batch, length, hidden]."""
        check_length(ids, self.config.limit)
        positions = self.positions(ids, mask)
        return self.part(_Embeddings, "embeddings")(ids, positions)  # type: ignore[no-any-return]

    def positions(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns each token's row in the table of positions, [batch or 1, length]."""
        del mask
        return jnp.arange(ids.shape[1])[None]


class _Embeddings(Part):
    @nn.compact
    def __call__(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        config, width = self.config, self.config.hidden_size
        hidden = self.table(config.vocab_size, width, "word_embeddings")(ids)
        if config.type_vocab_size:
            types = self.table(config.type_vocab_size, width, "token_type_embeddings")
            hidden = hidden + types(jnp.zeros((1, 1), jnp.int32))
        table = self.table(config.max_position_embeddings, width, "position_embeddings")
        return self.norm()(hidden + table(positions))  # type: ignore[no-any-return]


class _Encoder(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        return self.stack(_Layer, "layer")(hidden, mask)  # type: ignore[no-any-return]


class _Layer(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = self.part(_Attention, "attention")(hidden, mask)
        return feed_forward(self, hidden)


class _Attention(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        attended = self.part(_SelfAttention, "self")(hidden, mask)
        return self.part(_Output, "output")(attended, hidden)  # type: ignore[no-any-return]


class _SelfAttention(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        return self.attention(hidden, mask, ("query", "key", "value"))


def feed_forward(layer: Part, hidden: jax.Array) -> jax.Array:
    """Computes the second half of a layer, with its parts `intermediate` and `output`."""
    inner = layer.part(_Intermediate, "intermediate")(hidden)
    return layer.part(_Output, "output")(inner, hidden)  # type: ignore[no-any-return]


class _Intermediate(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.config.hidden_act]
        return activation(self.dense(self.config.intermediate_size)(hidden))  # type: ignore[no-any-return]


class _Output(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, residual: jax.Array) -> jax.Array:
        hidden = self.dense(self.config.hidden_size)(hidden)
        return self.norm()(hidden + residual)  # type: ignore[no-any-return]
