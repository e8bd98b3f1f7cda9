from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxval.checkpoints.export import BestCheckpoints
from jaxval.records import Checkpoint


def checkpoint(step, commit_ns=1):
    return Checkpoint(step, f"checkpoint_{step}", commit_ns, Path(f"/c/checkpoint_{step}"))


def params(step):
    return {"dense": {"kernel": np.full((8, 4), step, np.float32)}, "bias": np.arange(4.0)}


def exported(directory, *steps):
    best = BestCheckpoints(directory)
    for step in steps:
        best.export(checkpoint(step), params(step))
    return best


def names(directory):
    return sorted(path.name for path in directory.iterdir() if not path.is_symlink())


def test_an_export_is_restored_on_another_topology(tmp_path):
    exported(tmp_path / "best", 3)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread), params(3)
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            tmp_path / "best" / "1_checkpoint_3", {"params": wanted}
        )["params"]
    jax.tree.map(np.testing.assert_array_equal, restored, params(3))
    assert restored["bias"].sharding == spread


def test_jaxval_can_read_an_export(tmp_path):
    from jaxval.checkpoints.commit import committed
    from jaxval.checkpoints.restore import restore

    exported(tmp_path / "best", 3, 4).keep(
        ["1_checkpoint_3", "1_checkpoint_4"], "1_checkpoint_4"
    )
    third, fourth = committed(tmp_path / "best")  # and not the link
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params(4))
    assert restore(fourth, wanted).params["dense"]["kernel"][0, 0] == 4
    assert third.step == 3


def test_the_link_points_to_the_best_and_others_are_removed(tmp_path):
    best = exported(tmp_path, 3, 4, 5)
    best.keep(["1_checkpoint_4", "1_checkpoint_3"], best="1_checkpoint_4")
    assert names(tmp_path) == ["1_checkpoint_3", "1_checkpoint_4"]
    assert (tmp_path / "best").readlink() == Path("1_checkpoint_4")  # it may be moved
    assert (tmp_path / "best" / "_METADATA").is_file()
    best.keep(["1_checkpoint_3"], best="1_checkpoint_3")
    assert (tmp_path / "best").readlink() == Path("1_checkpoint_3")
    assert names(tmp_path) == ["1_checkpoint_3"]


def test_what_a_killed_run_left_incomplete_is_removed(tmp_path):
    best = exported(tmp_path, 3)
    (tmp_path / "1_checkpoint_4.orbax-checkpoint-tmp").mkdir()
    (tmp_path / ".best.new").symlink_to("1_checkpoint_9")
    best.keep(["1_checkpoint_3"], best="1_checkpoint_3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1_checkpoint_3", "best"]
    assert (tmp_path / "best").readlink() == Path("1_checkpoint_3")


def test_what_a_killed_run_exported_is_replaced(tmp_path):
    best = exported(tmp_path, 3)
    best.export(checkpoint(3), params(7))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "1_checkpoint_3")["params"]
    assert restored["dense"]["kernel"][0, 0] == 7


def test_a_step_saved_again_does_not_replace_its_better_export(tmp_path):
    best = exported(tmp_path, 3)
    best.export(checkpoint(3, commit_ns=2), params(7))
    best.keep(["1_checkpoint_3", "2_checkpoint_3"], best="1_checkpoint_3")
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore((tmp_path / "best").resolve())["params"]
    assert restored["dense"]["kernel"][0, 0] == 3


def test_the_link_stays_if_the_best_was_not_exported(tmp_path):
    """The best may be from a run that exported nothing."""
    best = exported(tmp_path, 3)
    best.keep(["1_checkpoint_3"], best="1_checkpoint_3")
    best.keep(["1_checkpoint_2", "1_checkpoint_3"], best="1_checkpoint_2")
    assert (tmp_path / "best").readlink() == Path("1_checkpoint_3")


def test_there_is_no_link_without_an_export(tmp_path):
    BestCheckpoints(tmp_path / "best").keep(["1_checkpoint_3"], best="1_checkpoint_3")
    assert not (tmp_path / "best" / "best").exists()
