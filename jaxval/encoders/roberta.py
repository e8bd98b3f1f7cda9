"""RoBERTa and XLM-RoBERTa: BERT with positions that begin after the padding id.

The parameter tree is that of FlaxRobertaModel and FlaxXLMRobertaModel of transformers 4.
Equations: `modeling_roberta.py` of huggingface/transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxval.encoders.bert import Bert, BertConfig
from jaxval.encoders.entries import Limit


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The entries of BertConfig with RoBERTa's defaults.

    Attributes:
      pad_token_id: The id of padding; the position of the first token is this plus one.
    """

    vocab_size: int = 50265
    pad_token_id: int = 1

    @property
    def limit(self) -> Limit:
        """The maximum length of a text."""
        return Limit(self.max_position_embeddings - self.pad_token_id - 1)


class Roberta(Bert):
    """RoBERTa without a head; padding may be on either side, and have any id."""

    def positions(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns each token's row in the table of positions, [batch, length].

        As in transformers, a token within a text that has the padding id is not counted, and
        has the row of padding.
        """
        pad: int = self.config.pad_token_id
        counted = (mask & (ids != pad)).astype(jnp.int32)
        return jnp.cumsum(counted, axis=1) * counted + pad
