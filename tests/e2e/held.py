"""The tiny world's encoder, which blocks on the whole corpus while a file exists."""

import os
import time
from pathlib import Path

import jax

from jaxval.encoders.adapter import FunctionEncoder
from tests.e2e import world

SAMPLE = 16
"""Maximum size of a batch that does not block. Those of the sample and the queries do not."""


def _wait(vectors):
    while Path(os.environ["HELD_BY"]).exists():
        time.sleep(0.01)
    return vectors


def encoder():
    """The factory for --encoder=tests.e2e.held:encoder."""
    unblocked = world.encoder()

    def encode_passages(params, ids, mask):
        vectors = unblocked.encode_passages(params, ids, mask)
        if ids.shape[0] <= SAMPLE:
            return vectors
        shape = jax.ShapeDtypeStruct(vectors.shape, vectors.dtype)
        return jax.pure_callback(_wait, shape, vectors)

    return FunctionEncoder(unblocked.encode_queries, encode_passages, unblocked.abstract_params)
