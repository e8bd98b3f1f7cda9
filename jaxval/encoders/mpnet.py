"""MPNet: RoBERTa without token types, and with a bias by the distance of positions.

transformers has no Flax model of it. The names are those of MPNetModel in PyTorch, with the
leaf names of Flax (`kernel`, `embedding`, `scale`). Equations: `modeling_mpnet.py` of
huggingface/transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxval.encoders.bert import feed_forward
from jaxval.encoders.blocks import ACTIVATIONS, Part
from jaxval.encoders.entries import read, require
from jaxval.encoders.roberta import Roberta, RobertaConfig

_BUCKETS, _MAX_DISTANCE = 32, 128


def from_json(config: Mapping[str, Any]) -> RobertaConfig:
    """Reads the entries of config.json; as in transformers, the padding id is always 1.

    Raises:
      EncoderError: They describe a model that is not supported.
    """
    require(config, "relative_attention_num_buckets", [_BUCKETS], _BUCKETS)
    require(config, "hidden_act", ACTIVATIONS, "gelu")
    entries = {**config, "pad_token_id": 1, "type_vocab_size": 0}
    return read(RobertaConfig, entries, vocab_size=30527)


class Mpnet(Roberta):
    """MPNet without a head."""

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the token states, [batch, length, hidden]."""
        hidden = self.embedded(ids, mask)
        return self.part(_Encoder, "encoder")(hidden, mask)  # type: ignore[no-any-return]


class _Encoder(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        bias = self.relative_bias(hidden.shape[1], _BUCKETS, _MAX_DISTANCE)
        return self.stack(_Layer, "layer")(hidden, mask, bias)  # type: ignore[no-any-return]


class _Layer(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        hidden = self.part(_Attention, "attention")(hidden, mask, bias)
        return feed_forward(self, hidden)


class _Attention(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        attended = self.part(_SelfAttention, "attn")(hidden, mask, bias)
        return self.norm()(attended + hidden)  # type: ignore[no-any-return]


class _SelfAttention(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        attended = self.attention(hidden, mask, ("q", "k", "v"), bias=bias)
        return self.dense(self.config.hidden_size, "o")(attended)  # type: ignore[no-any-return]
