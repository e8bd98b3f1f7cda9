"""Writes one small train state in many layouts, sharded over eight devices.

    python writer.py DIRECTORY

Each layout is in DIRECTORY/<layout>-<sharding>. The encoder's arrays are filled with 1, 2
and 3, so that they differ from each other and from the moments. A passage tower with its own
parameters has 11, 12 and 13.
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.struct import PyTreeNode
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
    """Returns the parameters in the boxes of nn.with_partitioning."""

    def box(leaf):
        return nn.Partitioned(leaf, names=(None,) * leaf.ndim)

    return jax.tree.map(box, sharded(params(), sharding))


class Tied(PyTreeNode):
    """TiedParams of tevax; with a list of two trees it is DualParams."""

    params: Any


class Everything(NamedTuple):
    """A state that is not a dictionary and contains a list."""

    step: int
    models: list
    notes: tuple


def towers():
    return [params(), jax.tree.map(lambda leaf: leaf + 10, params())]


def train_state(tree, sharding):
    """Returns a RetrieverTrainState of tevax; TrainState.create accepts only dictionaries."""
    tx = optax.adam(1e-3)
    state = TrainState(step=3, apply_fn=None, params=tree, tx=tx, opt_state=tx.init(tree))
    return sharded(state, sharding)


class Layers(nnx.Module):
    """The same arrays in an NNX module."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(16, 16, rngs=rngs)
        self.embed = nnx.Embed(64, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


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


def handled(directory, tree, **options):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(directory / "3", args=ocp.args.PyTreeSave(tree))


def plain_files(directory, sharding):
    handled(directory, {"params": sharded(params(), sharding)}, use_ocdbt=False)


def zarr3(directory, sharding):
    handled(directory, {"params": sharded(params(), sharding)}, use_zarr3=True)


def plain_zarr3(directory, sharding):
    tree = {"params": sharded(params(), sharding)}
    handled(directory, tree, use_ocdbt=False, use_zarr3=True)


def named_tuple(directory, sharding):
    saved = Everything(3, [sharded(params(), sharding)], ())
    manager(directory, ocp.args.PyTreeSave(saved))


def nnx_state(directory, sharding):
    model = Layers()
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    values = params()
    model.dense.kernel.set_value(values["dense"]["kernel"])
    model.dense.bias.set_value(values["dense"]["bias"])
    model.embed.embedding.set_value(values["embed"]["embedding"])
    states = {"model": nnx.state(model, nnx.Param), "optimizer": nnx.state(optimizer)}
    manager(directory, ocp.args.StandardSave(sharded(states, sharding)))


def version_1(directory, sharding):
    try:
        from orbax.checkpoint import v1
    except ImportError:
        from orbax.checkpoint.experimental import v1
    save = getattr(v1, "save", None) or v1.save_pytree
    save(directory / "3", {"params": sharded(params(), sharding)})


def magix(directory, sharding):
    """Saves as get_chckpoint_manager of magix does, with a checkpointer for each item."""
    kinds = {
        item: ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        for item in ("model", "optimizer")
    }
    saved = state(sharding)
    items = {"model": saved.params, "optimizer": saved.opt_state}
    with ocp.CheckpointManager(directory, kinds) as checkpoints:
        checkpoints.save(3, items=items)


class LoraPair(NamedTuple):
    """The factors of an adapter, as in magix/lora.py."""

    in_matrix: Any
    out_matrix: Any


def magix_lora(directory, sharding):
    """Saves an adapter of rank 2 for the kernel; the other arrays are None."""
    pair = LoraPair(jnp.full((16, 2), 0.5), jnp.arange(32.0).reshape(2, 16))
    lora = {"dense": {"kernel": pair, "bias": None}, "embed": {"embedding": None}}
    kinds = {
        item: ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        for item in ("lora", "optimizer")
    }
    items = sharded({"lora": lora, "optimizer": optax.adam(1e-3).init(lora)}, sharding)
    with ocp.CheckpointManager(directory, kinds) as checkpoints:
        checkpoints.save(3, items=items)


def tevax_tied(directory, sharding):
    manager(directory, ocp.args.StandardSave(train_state(Tied(params()), sharding)))


def tevax_dual(directory, sharding):
    manager(directory, ocp.args.StandardSave(train_state(Tied(towers()), sharding)))


def two_items(directory, sharding):
    query, passage = sharded(towers(), sharding)
    items = {
        "query_encoder": ocp.args.StandardSave(query),
        "passage_encoder": ocp.args.StandardSave(passage),
        "optimizer": ocp.args.StandardSave(query),
    }
    manager(directory, ocp.args.Composite(**items))


def scanned(directory, sharding):
    """Saves two layers in one array, stacked along the axis of MaxText."""
    layer = params()["dense"]
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 10], 1), layer)
    tree = {"params": {"layers": stack, "embed": params()["embed"]}}
    manager(directory, ocp.args.StandardSave(sharded(tree, sharding)))


def flax_orbax(directory, sharding):
    flax_checkpoints.save_checkpoint(
        directory, state(sharding), 3, orbax_checkpointer=ocp.PyTreeCheckpointer()
    )


def flax_msgpack(directory, sharding):
    """Saves one file, as flax did before it used Orbax."""
    flax.config.update("flax_use_orbax_checkpointing", False)
    flax_checkpoints.save_checkpoint(directory, state(sharding), 3)


LAYOUTS = (
    *(standard, composite, bare_standard, bare_pytree, plain_files, zarr3, plain_zarr3),
    *(named_tuple, nnx_state, version_1, magix, magix_lora, tevax_tied, tevax_dual),
    *(two_items, scanned, flax_orbax, flax_msgpack),
)


def main(root):
    for layout in LAYOUTS:
        for sharding in SHARDINGS:
            directory = root / f"{layout.__name__}-{sharding}"
            directory.mkdir()
            layout(directory, sharding)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
