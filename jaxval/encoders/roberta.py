"""RoBERTa and XLM-RoBERTa: BERT whose positions are counted from the padding's id.

Names and tree are those of transformers 4's FlaxRobertaModel and FlaxXLMRobertaModel.
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
    """BERT's entries, and the padding's id: positions begin right after it."""

    vocab_size: int = 50265
    pad_token_id: int = 1

    @property
    def limit(self) -> Limit:
        """How long a text may be."""
        return Limit(self.max_position_embeddings - self.pad_token_id - 1)


class Roberta(Bert):
    """As Bert. Padding may stand on either side, and have any id."""

    def places(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """The row of each token in the table of positions, [batch, length].

        A padding's id within a text has the padding's row and is not counted, as in
        transformers.
        """
        pad: int = self.config.pad_token_id
        counted = (mask & (ids != pad)).astype(jnp.int32)
        return jnp.cumsum(counted, axis=1) * counted + pad
