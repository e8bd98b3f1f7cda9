"""Two functions of a parameter tree, without a library of modules.

--encoder=examples.bare_functions:factory --tokenizer=FOLDER

The checkpoints contain a tree with the names and shapes below, anywhere in their tree.
"""

import jax
import jax.numpy as jnp

from jaxval import FunctionEncoder

VOCABULARY, WIDTH = 30522, 128


def shapes():
    return {
        "words": jax.ShapeDtypeStruct((VOCABULARY, WIDTH), jnp.float32),
        "query": {"scale": jax.ShapeDtypeStruct((WIDTH,), jnp.float32)},
    }


def encode_passages(params, ids, mask):
    states = params["words"][ids] * mask[..., None]
    return states.sum(1) / mask.sum(1, keepdims=True).clip(1)


def encode_queries(params, ids, mask):
    return encode_passages(params, ids, mask) * params["query"]["scale"][None]


def factory():
    return FunctionEncoder(encode_queries, encode_passages, shapes)
