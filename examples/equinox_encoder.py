"""An Equinox module, partitioned into its arrays and everything else.

--encoder=examples.equinox_encoder:factory --tokenizer=FOLDER

The checkpoints contain eqx.filter(model, eqx.is_array), anywhere in their tree.
"""

import equinox as eqx
import jax

from jaxval import FunctionEncoder


class Retriever(eqx.Module):
    words: eqx.nn.Embedding
    dense: eqx.nn.Linear

    def __init__(self, key, vocabulary=30522, width=128):
        words_key, dense_key = jax.random.split(key)
        self.words = eqx.nn.Embedding(vocabulary, width, key=words_key)
        self.dense = eqx.nn.Linear(width, width, key=dense_key)

    def __call__(self, ids, mask):
        states = jax.vmap(self.words)(ids) * mask[:, None]
        return self.dense(states.sum(0) / mask.sum().clip(1))


def factory():
    model = eqx.filter_eval_shape(Retriever, jax.random.key(0))
    params, rest = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def encode(params, ids, mask):
        return jax.vmap(eqx.combine(params, rest))(ids, mask)

    return FunctionEncoder(encode, encode, shapes=lambda: params)
