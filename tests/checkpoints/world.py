"""The state that writer.py saves, and helpers of several tests."""

import jax
import jax.numpy as jnp

from jaxval.checkpoints.commit import committed
from jaxval.evaluation.encode import place

ABSTRACT = {
    "dense": {
        "bias": jax.ShapeDtypeStruct((16,), jnp.float32),
        "kernel": jax.ShapeDtypeStruct((16, 16), jnp.float32),
    },
    "embed": {"embedding": jax.ShapeDtypeStruct((64, 16), jnp.float32)},
}
DAMAGED = ("standard", "composite", "bare_pytree", "plain_files", "plain_zarr3", "flax_msgpack")
"""Layouts that differ in their files."""
SHARDINGS = ["replicated", "fsdp", "tensor"]


def only(directory):
    """Returns the one committed checkpoint in a directory."""
    (checkpoint,) = committed(directory)
    return checkpoint


def check_placed(params, devices):
    """Asserts that parameters can be placed on all devices, whole on each."""
    for leaf in jax.tree.leaves(place(params, devices)):
        assert leaf.sharding.device_set == set(devices)
        assert leaf.is_fully_replicated


def abstract(shapes):
    """Returns the tree of jax.ShapeDtypeStruct with these shapes by path."""
    tree = {}
    for path, shape in shapes.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jax.ShapeDtypeStruct(shape, "float32")
    return tree
