import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.restore import restore
from jaxval.encode import place
from jaxval.errors import CorruptError, MismatchError, NonFiniteError, VanishedError

WRITER = Path(__file__).with_name("writer.py")
ABSTRACT = {
    "dense": {
        "bias": jax.ShapeDtypeStruct((16,), jnp.float32),
        "kernel": jax.ShapeDtypeStruct((16, 16), jnp.float32),
    },
    "embed": {"embedding": jax.ShapeDtypeStruct((64, 16), jnp.float32)},
}
FOUND_AT = {
    "standard": "default/params",
    "composite": "params",
    "bare_standard": "model/params",
    "bare_pytree": "params",
    "plain_files": "params",
    "flax_orbax": "params",
}


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """Every layout in every sharding, written by a process that has eight devices."""
    root = tmp_path_factory.mktemp("layouts")
    subprocess.run([sys.executable, str(WRITER), str(root)], check=True, capture_output=True)
    return root


def only(directory):
    (checkpoint,) = committed(directory)
    return checkpoint


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("sharding", ["replicated", "fsdp", "tensor"])
@pytest.mark.parametrize("layout", FOUND_AT)
def test_what_eight_devices_saved_is_restored_on_one_and_on_two(
    layouts, layout, sharding, devices
):
    checkpoint = only(layouts / f"{layout}-{sharding}")
    chosen = jax.devices()[:devices]
    restored = restore(checkpoint, ABSTRACT)
    assert checkpoint.step == 3
    assert restored.found_at == FOUND_AT[layout]
    values = jax.tree.map(lambda leaf: np.unique(leaf).tolist(), restored.params)
    assert values == {"dense": {"bias": [1.0], "kernel": [2.0]}, "embed": {"embedding": [3.0]}}
    for leaf in jax.tree.leaves(place(restored.params, chosen)):
        assert leaf.sharding.device_set == set(chosen)
        assert leaf.is_fully_replicated


def test_leaves_are_cast_to_the_dtypes_that_are_asked_for(layouts):
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), ABSTRACT)
    restored = restore(only(layouts / "standard-fsdp"), wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(restored.params)} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_an_encoder_that_does_not_fit_is_told_the_checkpoint_and_the_leaf(layouts):
    wanted = {**ABSTRACT, "pooler": {"kernel": jax.ShapeDtypeStruct((16, 16), jnp.float32)}}
    with pytest.raises(MismatchError, match=r"checkpoint 3 .*pooler/kernel \[16, 16\] is miss"):
        restore(only(layouts / "standard-fsdp"), wanted)


def test_one_that_is_gone_has_vanished(layouts, tmp_path):
    copy = shutil.copytree(layouts / "standard-fsdp", tmp_path / "copy")
    checkpoint = only(copy)
    shutil.rmtree(copy)
    with pytest.raises(VanishedError, match="checkpoint 3 .*deleted"):
        restore(checkpoint, ABSTRACT)


@pytest.mark.parametrize("layout", FOUND_AT)
def test_truncated_files_are_corrupt_not_fatal(layouts, tmp_path, layout):
    copy = shutil.copytree(layouts / f"{layout}-replicated", tmp_path / "copy")
    checkpoint = only(copy)
    data = [path for path in copy.rglob("*") if path.is_file() and path.stat().st_size > 20]
    for path in data:
        if "METADATA" not in path.name and not path.name.startswith((".z", "_sharding")):
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(
        CorruptError, match=r"checkpoint (step_|checkpoint_)?3 .*cannot be read"
    ):
        restore(checkpoint, ABSTRACT)


def test_nan_is_told_from_damage(tmp_path):
    tree = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), ABSTRACT)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "8", {"params": tree})
    with pytest.raises(NonFiniteError, match="checkpoint 8 .*NaN or infinity"):
        restore(only(tmp_path), ABSTRACT)


def composite(directory, query, passage):
    items = {"query": query, "passage": passage}
    saves = {name: ocp.args.StandardSave({"w": leaf}) for name, leaf in items.items()}
    with ocp.CheckpointManager(directory) as manager:
        manager.save(4, args=ocp.args.Composite(**saves))
    return {
        name: {"w": jax.ShapeDtypeStruct(leaf.shape, "float32")} for name, leaf in items.items()
    }


@pytest.mark.parametrize("shape", [(2,), (3, 5)])
def test_towers_that_stand_in_two_items_are_each_read_from_their_own(tmp_path, shape):
    query, passage = np.full((2,), 1, np.float32), np.full(shape, 2, np.float32)
    wanted = composite(tmp_path, query, passage)
    params = restore(only(tmp_path), wanted).params
    assert params["query"]["w"].tolist() == query.tolist()
    assert params["passage"]["w"].tolist() == passage.tolist()


def test_one_saved_again_before_it_was_read_has_vanished(tmp_path):
    tree = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), ABSTRACT)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "8", {"params": tree})
    first = only(tmp_path)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "8", {"params": tree}, force=True)
    with pytest.raises(VanishedError, match="saved again"):
        restore(first, ABSTRACT)


def test_what_is_not_the_files_fault_passes_as_it_is(layouts):
    """Else a bug, or a full memory, would condemn one checkpoint after another."""
    broken = {"dense": object()}
    with pytest.raises(AttributeError):
        restore(only(layouts / "standard-fsdp"), broken)
