"""Real damage to real checkpoints: the right values or a reason, never other values."""

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
"""Files that a restore into host memory does not need."""

FORMS = {
    "ocdbt": {},
    "ocdbt_zarr3": {"use_zarr3": True},
    "plain": {"use_ocdbt": False},
    "plain_zarr3": {"use_ocdbt": False, "use_zarr3": True},
}


NOISE = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
"""What compression cannot shrink, so that it stands in data files of its own."""


def wanted(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def write(directory, form):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    tree = jax.device_put({"w": NOISE}, NamedSharding(mesh, PartitionSpec("data")))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**FORMS[form])) as checkpointer:
        checkpointer.save(directory / "3", args=ocp.args.PyTreeSave({"params": tree}))
    return directory


def damaged(directory, cuts):
    """Each file in turn, damaged in each way: (name below the step's folder, damage)."""
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
    """The damage that passes: (file, damage). None of it gives wrong values."""
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
def test_damage_to_any_file_that_holds_values_is_noticed(tmp_path, form, cuts):
    """Values of the tiny layouts stand within OCDBT's index; these have files of their own."""
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
    # Of the rest only what is not read at all, and the index from before OCDBT's merge.
    assert {parts[0] for parts, _ in passed} <= {*UNREAD, "ocdbt.process_0"}


@pytest.mark.parametrize("form", FORMS)
def test_a_bit_that_flipped_in_what_is_compressed_is_noticed_or_harmless(tmp_path, form):
    directory = write(tmp_path / "checkpoints", form)
    flip = {"flipped": lambda content: bytes([content[0] ^ 255]) + content[1:]}
    unnoticed(directory, {"w": NOISE}, flip)


def test_one_that_loses_a_file_while_it_is_read_has_vanished(tmp_path):
    """Deletion is not one act: the trainer's rmtree takes file after file."""
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
