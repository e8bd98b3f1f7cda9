import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.checkpoints.restore import find_checkpoint, fitted, read, restore
from jaxval.errors import CorruptError, MismatchError, NonFiniteError, VanishedError
from tests.checkpoints.world import ABSTRACT, DAMAGED, SHARDINGS, check_placed, only

FOUND_AT = {
    "standard": "default/params",
    "composite": "params",
    "bare_standard": "model/params",
    "bare_pytree": "params",
    "plain_files": "params",
    "zarr3": "params",
    "plain_zarr3": "params",
    "named_tuple": "default/models/0",
    "nnx_state": "default/model",
    "version_1": "state/params",
    "magix": "model",
    "tevax_tied": "default/params/params",
    "flax_orbax": "params",
    "flax_msgpack": "params",
}
UNTIED = {
    "tevax_dual": "default/params/params/0 (queries), default/params/params/1 (passages)",
    "two_items": "query_encoder (queries), passage_encoder (passages)",
}
COUNTED = {"dense": {"bias": [1.0], "kernel": [2.0]}, "embed": {"embedding": [3.0]}}
"""The values with which writer.py fills the arrays."""


def values(tree):
    return jax.tree.map(lambda leaf: np.unique(leaf).tolist(), tree)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("layout", FOUND_AT)
def test_checkpoints_of_eight_devices_are_restored_on_one_and_on_two(
    layouts, layout, sharding, devices
):
    checkpoint = only(layouts / f"{layout}-{sharding}")
    restored = restore(checkpoint, ABSTRACT)
    assert checkpoint.step == 3
    assert restored.found_at == FOUND_AT[layout]
    assert not restored.untied
    assert values(restored.params) == COUNTED
    check_placed(restored.params, jax.devices()[:devices])


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("layout", UNTIED)
def test_both_untied_towers_are_restored(layouts, layout, sharding, devices):
    restored = restore(only(layouts / f"{layout}-{sharding}"), ABSTRACT)
    assert restored.untied
    assert restored.found_at == UNTIED[layout]
    assert values(restored.params["query"]) == COUNTED
    assert values(restored.params["passage"]) == {
        "dense": {"bias": [11.0], "kernel": [12.0]},
        "embed": {"embedding": [13.0]},
    }
    check_placed(restored.params, jax.devices()[:devices])


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_layers_of_a_scan_are_restored_unstacked(layouts, sharding, devices):
    wanted = {
        "embed": ABSTRACT["embed"],
        "layers_0": ABSTRACT["dense"],
        "layers_1": ABSTRACT["dense"],
    }
    restored = restore(only(layouts / f"scanned-{sharding}"), wanted)
    assert restored.found_at == "default/params"
    assert restored.remarks == ("its layers are stacked along axis 1",)
    assert values(restored.params) == {
        "embed": {"embedding": [3.0]},
        "layers_0": {"bias": [1.0], "kernel": [2.0]},
        "layers_1": {"bias": [11.0], "kernel": [12.0]},
    }
    check_placed(restored.params, jax.devices()[:devices])


@pytest.mark.parametrize(
    ("kind", "found_at"),
    {
        "manager": "model",
        "single": "default/params",
        "standard": "params",
        "plain": "params",
        "flax": "params",
        "msgpack": "params",
    }.items(),
)
def test_checkpoints_of_orbax_0_4_8_are_restored(fixtures, kind, found_at):
    restored = restore(only(fixtures / "orbax_0_4_8" / kind), ABSTRACT)
    assert restored.found_at == found_at
    assert values(restored.params) == COUNTED


def test_leaves_are_cast_to_the_dtypes_of_the_encoder(layouts):
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), ABSTRACT)
    restored = restore(only(layouts / "standard-fsdp"), wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(restored.params)} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_the_error_for_a_mismatch_names_the_checkpoint_and_the_leaf(layouts):
    wanted = {**ABSTRACT, "pooler": {"kernel": jax.ShapeDtypeStruct((16, 16), jnp.float32)}}
    with pytest.raises(MismatchError, match=r"checkpoint 3 .*pooler/kernel \[16, 16\] is miss"):
        restore(only(layouts / "standard-fsdp"), wanted)


def test_a_deleted_checkpoint_has_vanished(layouts, tmp_path):
    copy = shutil.copytree(layouts / "standard-fsdp", tmp_path / "copy")
    checkpoint = only(copy)
    shutil.rmtree(copy)
    with pytest.raises(VanishedError, match="checkpoint 3 .*deleted"):
        restore(checkpoint, ABSTRACT)


@pytest.mark.parametrize("layout", DAMAGED)
def test_a_checkpoint_with_truncated_files_is_corrupt(layouts, tmp_path, layout):
    copy = shutil.copytree(layouts / f"{layout}-replicated", tmp_path / "copy")
    data = [path for path in copy.rglob("*") if path.is_file() and path.stat().st_size > 20]
    for path in data:
        if "METADATA" not in path.name and not path.name.startswith((".z", "_sharding")):
            path.write_bytes(path.read_bytes()[:20])
    checkpoint = only(copy)
    with pytest.raises(
        CorruptError, match=r"checkpoint (step_|checkpoint_)?3 .*cannot be read"
    ):
        restore(checkpoint, ABSTRACT)


def test_nan_is_not_reported_as_damage(tmp_path):
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
def test_towers_in_two_items_are_read_from_both(tmp_path, shape):
    query, passage = np.full((2,), 1, np.float32), np.full(shape, 2, np.float32)
    wanted = composite(tmp_path, query, passage)
    params = restore(only(tmp_path), wanted).params
    assert params["query"]["w"].tolist() == query.tolist()
    assert params["passage"]["w"].tolist() == passage.tolist()


def test_a_checkpoint_saved_again_before_it_is_read_has_vanished(tmp_path):
    tree = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), ABSTRACT)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "8", {"params": tree})
    first = only(tmp_path)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "8", {"params": tree}, force=True)
    with pytest.raises(VanishedError, match="saved again"):
        restore(first, ABSTRACT)


def test_errors_that_files_do_not_cause_are_raised_unchanged(layouts):
    """Otherwise a bug would mark every checkpoint as corrupt."""
    broken = {"dense": object()}
    with pytest.raises(AttributeError):
        restore(only(layouts / "standard-fsdp"), broken)


def test_find_checkpoint_accepts_a_checkpoint_or_a_directory_with_one(
    layouts, fixtures, tmp_path
):
    directory = layouts / "standard-fsdp"
    assert find_checkpoint(str(directory / "3")) == directory / "3"
    assert find_checkpoint(str(directory)) == directory / "3"
    file = fixtures / "orbax_0_4_8" / "msgpack" / "checkpoint_3"
    assert find_checkpoint(str(file)) == file
    assert find_checkpoint(str(layouts)) is None
    assert find_checkpoint(str(tmp_path / "not there")) is None
    assert values(read(directory / "3", ABSTRACT).params) == COUNTED


def test_reading_a_damaged_base_is_an_error(layouts, tmp_path):
    copy = shutil.copytree(layouts / "standard-fsdp" / "3", tmp_path / "copy")
    (copy / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CorruptError, match="it cannot be read"):
        read(find_checkpoint(str(copy)), ABSTRACT)


def test_parameters_in_memory_are_fitted():
    tree = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), ABSTRACT)
    assert values(fitted({"bert": tree, "pooler": {}}, ABSTRACT).params) == values(tree)
    with pytest.raises(MismatchError, match="dense/bias"):
        fitted({"embed": tree["embed"]}, ABSTRACT)


def test_a_broken_msgpack_file_is_corrupt(tmp_path):
    (tmp_path / "checkpoint_3").write_bytes(b"\x81\xa1a\xc4")
    with pytest.raises(CorruptError, match="cannot be read as msgpack"):
        restore(only(tmp_path), ABSTRACT)
