"""Lengths of texts like those of MS MARCO's passages, for synthetic corpora."""

from __future__ import annotations

import numpy as np


def msmarco(count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of so many passages, special ones not counted: [count] int64.

    Log-normal, with a mean of 76 WordPiece tokens, half of them between 50 and 93, and a tail
    that ends at 254: about what MS MARCO's 8.84 million passages have by BERT's tokenizer.
    """
    return np.clip(rng.lognormal(4.22, 0.46, count).round(), 8, 254).astype(np.int64)
