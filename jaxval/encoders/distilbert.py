"""DistilBERT: BERT without token types, with the names of FlaxDistilBertModel.

Equations: `modeling_distilbert.py` of huggingface/transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxval.encoders.bert import Bert, BertConfig
from jaxval.encoders.blocks import ACTIVATIONS, Part
from jaxval.encoders.entries import read, require

_RENAMED = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}


def from_json(config: Mapping[str, Any]) -> BertConfig:
    """Reads the entries of config.json, whose names differ from BERT's.

    Raises:
      EncoderError: They describe a model that is not supported.
    """
    require(config, "sinusoidal_pos_embds", [False], False)
    require(config, "activation", ACTIVATIONS, "gelu")
    return read(BertConfig, config, renamed=_RENAMED, num_hidden_layers=6, type_vocab_size=0)


class DistilBert(Bert):
    """DistilBERT without a head."""

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the token states, [batch, length, hidden]."""
        hidden = self.embedded(ids, mask)
        return self.part(_Transformer, "transformer")(hidden, mask)  # type: ignore[no-any-return]


class _Transformer(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        return self.stack(_Layer, "layer")(hidden, mask)  # type: ignore[no-any-return]


class _Layer(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        attended = self.part(_Attention, "attention")(hidden, mask)
        hidden = self.norm("sa_layer_norm")(attended + hidden)
        inner = self.part(_FeedForward, "ffn")(hidden)
        return self.norm("output_layer_norm")(inner + hidden)  # type: ignore[no-any-return]


class _Attention(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        attended = self.attention(hidden, mask, ("q_lin", "k_lin", "v_lin"))
        return self.dense(self.config.hidden_size, "out_lin")(attended)  # type: ignore[no-any-return]


class _FeedForward(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        inner = self.dense(self.config.intermediate_size, "lin1")(hidden)
        inner = ACTIVATIONS[self.config.hidden_act](inner)
        return self.dense(self.config.hidden_size, "lin2")(inner)  # type: ignore[no-any-return]
