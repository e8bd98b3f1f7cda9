"""Layers that nn.scan stacks, for an encoder that numbers them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.checkpoints.restore import restore
from jaxval.encoders.adapter import from_linen
from tests.checkpoints.world import only

LAYERS, WIDTH = 3, 8
IDS = jnp.array([[1, 2, 3], [3, 1, 0]], jnp.int32)
MASK = IDS > 0


class Layer(nn.Module):
    @nn.compact
    def __call__(self, states, _=None):
        inner = nn.Dense(2 * WIDTH, name="up")(nn.LayerNorm(name="norm")(states))
        return states + nn.Dense(WIDTH, name="down")(nn.tanh(inner)), None


class Trained(nn.Module):
    """A scanned model, as those of MaxText and T5X, and of magix named *_scan."""

    axis: int
    name_of_stack: str

    @nn.compact
    def __call__(self, ids, mask):
        states = nn.Embed(5, WIDTH, name="words")(ids)
        rules = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
        stack = nn.scan(Layer, length=LAYERS, **rules)
        states, _ = stack(name=self.name_of_stack)(states, None)
        return (states * mask[..., None]).sum(1)


class Numbered(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        states = nn.Embed(5, WIDTH, name="words")(ids)
        for number in range(LAYERS):
            states, _ = Layer(name=f"layers_{number}")(states)
        return (states * mask[..., None]).sum(1)


class Wrapped(nn.Module):
    """The body of nn.scan, in which the layer has a name."""

    @nn.compact
    def __call__(self, states, _):
        return Layer(name="layer")(states)


class TrainedInWrapper(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        states = nn.Embed(5, WIDTH, name="words")(ids)
        rules = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        states, _ = nn.scan(Wrapped, length=LAYERS, **rules)(name="layers")(states, None)
        return (states * mask[..., None]).sum(1)


@pytest.mark.parametrize(
    ("axis", "trained"),
    [(0, Trained(0, "ScanLayer_0")), (1, Trained(1, "layers")), (0, TrainedInWrapper())],
)
def test_the_numbered_encoder_equals_the_scanned_one(tmp_path, axis, trained):
    params = jax.jit(trained.init)(jax.random.key(1), IDS, MASK)["params"]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "3", {"params": params})
    encoder = from_linen(Numbered())
    restored = restore(only(tmp_path), encoder.abstract_params())
    assert restored.remarks == (f"its layers are stacked along axis {axis}",)
    np.testing.assert_allclose(
        encoder.encode_queries(restored.params, IDS, MASK),
        trained.apply({"params": params}, IDS, MASK),
        atol=1e-5,
    )
