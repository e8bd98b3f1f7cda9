"""Damage to checkpoints on disk leads to correct values or to an error, never to others."""

import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxval.checkpoints.restore import restore
from jaxval.errors import CheckpointError, CorruptError, MismatchError, VanishedError
from tests.checkpoints.world import ABSTRACT, DAMAGED, only

REASONS = (CorruptError, VanishedError, MismatchError)
COUNTED = {"dense": {"bias": 1.0, "kernel": 2.0}, "embed": {"embedding": 3.0}}
UNREAD = {"_sharding", "array_metadatas", "commit_success.txt"}
"""Files that are not read when a checkpoint is restored to host memory."""

FORMS = {
    "ocdbt": {},
    "ocdbt_zarr3": {"use_zarr3": True},
    "plain": {"use_ocdbt": False},
    "plain_zarr3": {"use_ocdbt": False, "use_zarr3": True},
}


NOISE = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
"""Values that compression does not shrink, so that they are in separate data files."""


def wanted(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def write(directory, form):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    tree = jax.device_put({"w": NOISE}, NamedSharding(mesh, PartitionSpec("data")))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**FORMS[form])) as checkpointer:
        checkpointer.save(directory / "3", args=ocp.args.PyTreeSave({"params": tree}))
    return directory


def damaged(directory, cuts):
    """Damages one file after another in each way; yields (path in the step, damage)."""
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for name, cut in cuts.items():
            path.unlink()
            if (rest := cut(content)) is not None:
                path.write_bytes(rest)
            yield path.relative_to(directory).parts[1:], name
            path.write_bytes(content)


DELETED = {"deleted": lambda content: None}
HALVED = {"halved": lambda content: content[: len(content) // 2]}
CUT = {**HALVED, "one byte short": lambda content: content[:-1]}


def unnoticed(directory, right, cuts):
    """Returns the (file, damage) without an error, after checking that the values are right."""
    checkpoint, passed = only(directory), set()
    for parts, damage in damaged(directory, cuts):
        try:
            restored = restore(checkpoint, wanted(right))
        except REASONS:
            continue
        same = jax.tree.map(np.array_equal, restored.params, right)
        assert jax.tree.all(same), f"{'/'.join(parts)} {damage}: wrong values"
        passed.add((parts, damage))
    return passed


@pytest.mark.parametrize("cuts", [DELETED, HALVED], ids=["deleted", "halved"])
@pytest.mark.parametrize("layout", DAMAGED)
def test_no_damage_to_any_layout_gives_wrong_values(layouts, tmp_path, layout, cuts):
    copy = shutil.copytree(layouts / f"{layout}-fsdp", tmp_path / "copy")
    right = jax.tree.map(
        lambda spec, value: np.full(spec.shape, value, spec.dtype), ABSTRACT, COUNTED
    )
    passed = unnoticed(copy, right, cuts)
    needless = {*UNREAD, "ocdbt.process_0", "optimizer", "data"}
    assert all(needless.intersection(parts) for parts, _ in passed)
    restored = restore(only(copy), ABSTRACT)
    jax.tree.map(np.testing.assert_array_equal, restored.params, right)


@pytest.mark.parametrize("cuts", [DELETED, CUT], ids=["deleted", "cut"])
@pytest.mark.parametrize("form", FORMS)
def test_damage_to_any_file_with_values_is_detected(tmp_path, form, cuts):
    """The small layouts have their values in the index of OCDBT; these have separate files."""
    directory = write(tmp_path / "checkpoints", form)
    passed = unnoticed(directory, {"w": NOISE}, cuts)
    values = {
        path.relative_to(directory).parts[1:]
        for path in directory.rglob("*")
        if path.is_file() and path.stat().st_size > NOISE.nbytes / 8
    }
    assert values
    # The last byte of a data file may belong to an index that is not read.
    assert not values & {parts for parts, damage in passed if damage != "one byte short"}
    # The other files are not read, or are the index from before the merge of OCDBT.
    assert {parts[0] for parts, _ in passed} <= {*UNREAD, "ocdbt.process_0"}


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_are_detected_or_harmless(tmp_path, form):
    directory = write(tmp_path / "checkpoints", form)
    flip = {"flipped": lambda content: bytes([content[0] ^ 255]) + content[1:]}
    unnoticed(directory, {"w": NOISE}, flip)


def test_a_checkpoint_that_is_deleted_file_by_file(tmp_path):
    """The rmtree of the trainer deletes one file after another."""
    directory = write(tmp_path / "checkpoints", "plain")
    checkpoint = only(directory)
    outcomes = []
    for path in sorted((directory / "3").rglob("*"), reverse=True):
        if path.is_file() and path.name != "_CHECKPOINT_METADATA":
            path.unlink()
            try:
                restore(checkpoint, wanted({"w": NOISE}))
            except CheckpointError as error:
                outcomes.append(type(error))
    assert set(outcomes) == {CorruptError}
    shutil.rmtree(directory / "3")
    with pytest.raises(VanishedError, match="deleted before it could be read"):
        restore(checkpoint, wanted({"w": NOISE}))
