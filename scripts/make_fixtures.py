"""Writes the checkpoints that only older libraries write, for tests/checkpoints/fixtures.

    pip install transformers==4.57.6 flax optax orbax-checkpoint
    python scripts/make_fixtures.py flax_bert tests/checkpoints/fixtures

    pip install orbax-checkpoint==0.4.8 jax==0.4.23 jaxlib==0.4.23 flax==0.7.5 optax==0.1.7 \
        'numpy<2' 'scipy<1.13' tensorstore==0.1.52
    python scripts/make_fixtures.py orbax_0_4_8 tests/checkpoints/fixtures

Run each command in a separate environment. Existing files are replaced. Each directory is
written as an archive, because most of its size is metadata, which compress well.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.struct import PyTreeNode
from flax.training import checkpoints as flax_checkpoints
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

STEP = 3


class TiedParams(PyTreeNode):
    """The record of the same name in Tevatron's tevax/training.py."""

    params: Any


class DualParams(PyTreeNode):
    """The record of the same name there: a list of the query's and the passage's parameters."""

    params: Any


def train_state(params: Any) -> TrainState:
    """A train state whose `params` need not be a dictionary, as TrainState.create requires."""
    tx = optax.adamw(1e-3)
    return TrainState(step=STEP, apply_fn=None, params=params, tx=tx, opt_state=tx.init(params))


def flax_bert(root: Path) -> None:
    """Writes FlaxBertModel in TrainState, TiedParams and DualParams, and its vectors."""
    from transformers import BertConfig, FlaxBertModel

    config = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    query, passage = (FlaxBertModel(config, seed=seed, input_shape=(1, 8)) for seed in (0, 1))
    states = {
        "train_state": TrainState.create(
            apply_fn=query.__call__, params=query.params, tx=optax.adamw(1e-3)
        ),
        "tied": train_state(TiedParams(query.params)),
        "dual": train_state(DualParams([query.params, passage.params])),
    }
    for name, state in states.items():
        with ocp.CheckpointManager(root / name) as manager:
            manager.save(STEP, args=ocp.args.StandardSave(state))
    config.save_pretrained(root)
    ids = np.random.default_rng(0).integers(1, 16, (4, 8))
    mask = np.arange(8)[None] < np.array([8, 5, 3, 1])[:, None]
    vectors = {
        tower: np.asarray(model(ids, mask.astype(int)).last_hidden_state[:, 0])
        for tower, model in {"query": query, "passage": passage}.items()
    }
    np.savez(root / "golden.npz", ids=ids, mask=mask, **vectors)


def counted() -> Any:
    """Returns the tree of tests/checkpoints/writer.py, sharded over eight devices."""
    tree = {
        "dense": {"bias": jnp.full((16,), 1.0), "kernel": jnp.full((16, 16), 2.0)},
        "embed": {"embedding": jnp.full((64, 16), 3.0)},
    }
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    return jax.device_put(tree, spread)


def orbax_0_4_8(root: Path) -> None:
    """Writes the tree with a manager, bare, without OCDBT, and through flax."""
    state = TrainState.create(apply_fn=None, params=counted(), tx=optax.adam(1e-3))
    items = {"model": state.params, "optimizer": state.opt_state}
    kinds = {name: ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()) for name in items}
    manager = ocp.CheckpointManager(root / "manager", kinds)
    manager.save(STEP, items)
    manager.wait_until_finished()
    single = ocp.CheckpointManager(root / "single", ocp.PyTreeCheckpointer())
    single.save(STEP, state)
    ocp.StandardCheckpointer().save(root / "standard" / str(STEP), {"params": state.params})
    plain = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
    plain.save(root / "plain" / str(STEP), {"params": state.params})
    flax_checkpoints.save_checkpoint(
        root / "flax", state, STEP, orbax_checkpointer=ocp.PyTreeCheckpointer()
    )
    flax.config.update("flax_use_orbax_checkpointing", False)
    flax_checkpoints.save_checkpoint(root / "msgpack", state, STEP)


if __name__ == "__main__":
    make = {"flax_bert": flax_bert, "orbax_0_4_8": orbax_0_4_8}[sys.argv[1]]
    target = Path(sys.argv[2]).resolve() / make.__name__
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    make(target)
    for directory in [path for path in target.iterdir() if path.is_dir()]:
        shutil.make_archive(str(directory), "gztar", directory)
        shutil.rmtree(directory)
