"""An NNX module with dropout.

--encoder=examples.nnx_encoder:factory --tokenizer=FOLDER

The checkpoints contain nnx.state(model), or a pure dictionary of it, anywhere in their tree.
"""

from flax import nnx

from jaxval import from_nnx


class Retriever(nnx.Module):
    def __init__(self, rngs, vocabulary=30522, width=128):
        self.words = nnx.Embed(vocabulary, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.dense = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, ids, mask):
        states = self.dropout(self.words(ids)) * mask[..., None]
        return self.dense(states.sum(1) / mask.sum(1, keepdims=True).clip(1))


def factory():
    return from_nnx(lambda: Retriever(nnx.Rngs(0)))
