"""An NNX module, split into its graph and its parameters.

--encoder=examples.nnx_encoder:factory --tokenizer=FOLDER

The checkpoints hold nnx.state(model), or a pure dictionary of it, wherever in their tree.
"""

from flax import nnx

from jaxval.encoders.adapter import FunctionEncoder


class Retriever(nnx.Module):
    def __init__(self, rngs, vocabulary=30522, width=128):
        self.words = nnx.Embed(vocabulary, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.dense = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, ids, mask):
        states = self.dropout(self.words(ids)) * mask[..., None]
        return self.dense(states.sum(1) / mask.sum(1, keepdims=True).clip(1))


def factory():
    model = nnx.eval_shape(lambda: Retriever(nnx.Rngs(0)))
    model.eval()  # without dropout, so that the generators' state is never used
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def encode(params, ids, mask):
        return nnx.merge(graph, params, rest)(ids, mask)

    return FunctionEncoder(encode, encode, shapes=lambda: nnx.to_pure_dict(params))
