"""Random text lengths, distributed like those of MS MARCO's passages."""

from __future__ import annotations

import numpy as np


def msmarco(count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns lengths of passages in tokens, without special tokens: [count] int64.

    The distribution is log-normal, with a mean of 76 tokens; half of the lengths are between 50
    and 93, and the maximum is 254. BERT's tokenizer gives about these lengths for MS MARCO's
    8.84 million passages.
    """
    return np.clip(rng.lognormal(4.22, 0.46, count).round(), 8, 254).astype(np.int64)
