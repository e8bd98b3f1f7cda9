"""Writes one small train state in many layouts, sharded over eight devices.

    python writer.py DIRECTORY

Each layout lies in DIRECTORY/<layout>-<sharding>. The encoder's parameters count up
from 1, so that a reader can tell them from the moments and from each other.
"""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training import checkpoints as flax_checkpoints
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHARDINGS = {
    "replicated": lambda shape: PartitionSpec(),
    "fsdp": lambda shape: PartitionSpec(("data", "model")) if _splits(shape, 0) else None,
    "tensor": lambda shape: (
        PartitionSpec("data", "model") if len(shape) == 2 and shape[1] % 4 == 0 else None
    ),
}


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        states = nn.Dense(16, name="dense")(nn.Embed(64, 16, name="embed")(ids))
        return (states * mask[..., None]).sum(1)


def _splits(shape, axis):
    return len(shape) > axis and shape[axis] % 8 == 0


def params():
    ids = jnp.zeros((1, 4), jnp.int32)
    tree = Encoder().init(jax.random.key(0), ids, jnp.ones((1, 4), bool))["params"]
    count = iter(range(1, 100))
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, float(next(count))), tree)


def sharded(tree, sharding):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))

    def put(leaf):
        spec = SHARDINGS[sharding](np.shape(leaf)) or PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


def state(sharding):
    return sharded(
        TrainState.create(apply_fn=None, params=params(), tx=optax.adam(1e-3)), sharding
    )


def boxed(sharding):
    return jax.tree.map(lambda leaf: {"value": leaf}, sharded(params(), sharding))


def manager(directory, args):
    with ocp.CheckpointManager(directory) as checkpoints:
        checkpoints.save(3, args=args)


def standard(directory, sharding):
    manager(directory, ocp.args.StandardSave(state(sharding)))


def composite(directory, sharding):
    whole = state(sharding)
    items = {
        "params": ocp.args.StandardSave(whole.params),
        "optimizer": ocp.args.StandardSave(whole.opt_state),
        "data": ocp.args.JsonSave({"epoch": 1}),
    }
    manager(directory, ocp.args.Composite(**items))


def bare_standard(directory, sharding):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "3", {"model": {"params": sharded(params(), sharding)}})


def bare_pytree(directory, sharding):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory / "step_3", {"params": boxed(sharding), "notes": [1, 2]})


def plain_files(directory, sharding):
    tree = {"params": sharded(params(), sharding)}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory / "3", args=ocp.args.PyTreeSave(tree))


def flax_orbax(directory, sharding):
    flax_checkpoints.save_checkpoint(
        directory, state(sharding), 3, orbax_checkpointer=ocp.PyTreeCheckpointer()
    )


LAYOUTS = (standard, composite, bare_standard, bare_pytree, plain_files, flax_orbax)


def main(root):
    for layout in LAYOUTS:
        for sharding in SHARDINGS:
            directory = root / f"{layout.__name__}-{sharding}"
            directory.mkdir()
            layout(directory, sharding)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
