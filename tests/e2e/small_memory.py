"""The tiny world's encoder on a device with little memory.

It raises the error of XLA for a batch of more tokens than the environment variable ROOM says.
"""

import os

import jax

from jaxval.encoders.adapter import FunctionEncoder
from tests.e2e import world

ROOM = "JAXVAL_TEST_ROOM"
FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."


def encoder():
    """The factory for --encoder=tests.e2e.small_memory:encoder."""
    unlimited = world.encoder()

    def limited(function):
        def encode(params, ids, mask):
            if ids.size > int(os.environ[ROOM]):
                raise jax.errors.JaxRuntimeError(FULL)
            return function(params, ids, mask)

        return encode

    return FunctionEncoder(
        limited(unlimited.encode_queries),
        limited(unlimited.encode_passages),
        unlimited.abstract_params,
    )
