"""A linen module whose towers differ only in their heads.

--encoder=examples.linen_encoder:factory --tokenizer=FOLDER

The checkpoints contain its parameters, anywhere in their tree, e.g. as TrainState.params.
"""

import flax.linen as nn

from jaxval import from_linen


class Retriever(nn.Module):
    vocabulary: int = 30522
    width: int = 128

    def setup(self):
        self.words = nn.Embed(self.vocabulary, self.width)
        self.query_head = nn.Dense(self.width)
        self.passage_head = nn.Dense(self.width)

    def mean(self, ids, mask):
        states = self.words(ids) * mask[..., None]
        return states.sum(1) / mask.sum(1, keepdims=True).clip(1)

    def queries(self, ids, mask):
        return self.query_head(self.mean(ids, mask))

    def passages(self, ids, mask):
        return self.passage_head(self.mean(ids, mask))


def factory():
    return from_linen(Retriever(), query_method="queries", passage_method="passages")
