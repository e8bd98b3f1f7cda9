"""BERT in Flax linen, under the parameter names of transformers 4's FlaxBertModel.

What was trained with FlaxBertModel restores as it is; a pooler, if there is one, is not
asked for. There is no dropout: this is for encoding. Equations: `modeling_bert.py` of
huggingface/transformers.
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
    """The entries of config.json that shape the encoder, with transformers' defaults.

    Without token types (type_vocab_size 0) there is no table of them.
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
        """Reads what config.json holds; entries that do not matter here are passed over.

        Raises:
          EncoderError: it describes a model that this module does not compute.
        """
        require(config, "position_embedding_type", ["absolute"], "absolute")
        require(config, "is_decoder", [False], False)
        require(config, "hidden_act", ACTIVATIONS, "gelu")
        return read(cls, config)

    @property
    def limit(self) -> Limit:
        """How long a text may be."""
        return Limit(self.max_position_embeddings)


class Bert(Part):
    """(ids [batch, length] int32, mask [batch, length] bool) -> [batch, length, hidden].

    Padding may have any width on the right; it changes no unpadded position's state.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token states.

        Raises:
          EncoderError: length exceeds the position embeddings.
        """
        hidden = self.embedded(ids, mask)
        return self.part(_Encoder, "encoder")(hidden, mask)  # type: ignore[no-any-return]

    def embedded(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """The states before the first layer, [batch, length, hidden]."""
        check_length(ids, self.config.limit)
        places = self.places(ids, mask)
        return self.part(_Embeddings, "embeddings")(ids, places)  # type: ignore[no-any-return]

    def places(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """The row of each token in the table of positions, [batch or 1, length]."""
        del mask
        return jnp.arange(ids.shape[1])[None]


class _Embeddings(Part):
    @nn.compact
    def __call__(self, ids: jax.Array, places: jax.Array) -> jax.Array:
        config, width = self.config, self.config.hidden_size
        hidden = self.table(config.vocab_size, width, "word_embeddings")(ids)
        if config.type_vocab_size:
            types = self.table(config.type_vocab_size, width, "token_type_embeddings")
            hidden = hidden + types(jnp.zeros((1, 1), jnp.int32))
        positions = self.table(config.max_position_embeddings, width, "position_embeddings")
        return self.norm()(hidden + positions(places))  # type: ignore[no-any-return]


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
    """A layer's second half, as its parts `intermediate` and `output`."""
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
