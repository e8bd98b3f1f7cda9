"""An encoder that fits no checkpoint of the tiny world, and one that raises an error."""

import flax.linen as nn

from jaxval.encoders.adapter import from_linen


class Other(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        return (nn.Embed(14, 4, name="vectors")(ids) * mask[..., None]).sum(1)


def encoder():
    return from_linen(Other())


class Broken(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        return nn.Embed(14, 4, name="vectors")(ids)[:, self.position]


def broken():
    return from_linen(Broken())
