import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.pins import Pins
from jaxval.checkpoints.watcher import Watcher
from jaxval.errors import VanishedError
from jaxval.records import PinLimit


def save(root, step, stamp=None):
    """A directory that passes for a committed checkpoint."""
    path = Path(root) / str(step)
    (path / "default").mkdir(parents=True, exist_ok=True)
    (path / "default" / "data").write_text(f"parameters of {step}")
    stamp = {"commit_timestamp_nsecs": stamp or 1000 + step}
    (path / "_CHECKPOINT_METADATA").write_text(json.dumps(stamp))
    return path


def watcher(tmp_path, **kwargs):
    return Watcher(str(tmp_path / "ckpt"), tmp_path / "pins", interval=0.02, **kwargs)


def drain(watching):
    """What stands in line, in the order in which it is handed out."""
    steps = []
    while (checkpoint := watching.next(timeout=0)) is not None:
        steps.append(checkpoint.step)
        watching.done(checkpoint)
    return steps


def test_every_checkpoint_comes_once_in_step_order(tmp_path):
    watching = watcher(tmp_path)
    for step in (30, 4, 100):
        save(tmp_path / "ckpt", step)
    watching.poll()
    watching.poll()
    assert drain(watching) == [4, 30, 100]
    watching.poll()
    assert drain(watching) == []


def test_a_pin_outlives_what_the_trainer_deletes(tmp_path):
    watching = watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    watching.poll()
    shutil.rmtree(source)
    checkpoint = watching.next(timeout=0)
    assert checkpoint.path == source
    assert (checkpoint.readable / "default" / "data").read_text() == "parameters of 5"
    watching.done(checkpoint)
    assert list((tmp_path / "pins").iterdir()) == []


def test_the_thread_sees_what_comes_and_goes_while_nobody_asks(tmp_path):
    watching = watcher(tmp_path)
    watching.start()
    seen = []
    for step in range(8):
        source = save(tmp_path / "ckpt", step)
        while len(watching.waiting()) <= step:
            threading.Event().wait(0.01)
        shutil.rmtree(source)
    watching.stop()
    seen = drain(watching)
    assert seen == list(range(8))


def test_a_restart_takes_up_what_was_pinned_and_clears_what_was_not_whole(tmp_path):
    first = watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    first.poll()
    shutil.rmtree(source)
    (tmp_path / "pins" / "6.1006.partial").mkdir()
    second = watcher(tmp_path)
    second.start()
    second.stop()
    checkpoint = second.next(timeout=0)
    assert (checkpoint.step, checkpoint.commit_ns, checkpoint.path) == (5, 1005, source)
    assert drain(second) == [5]
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_step_saved_again_stands_in_line_again(tmp_path):
    watching = watcher(tmp_path)
    save(tmp_path / "ckpt", 5, stamp=1)
    watching.poll()
    assert drain(watching) == [5]
    save(tmp_path / "ckpt", 5, stamp=2)
    watching.poll()
    assert drain(watching) == [5]


def test_the_rest_of_a_checkpoint_that_is_being_deleted_is_none(tmp_path):
    watching = watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    (source / "commit_success.txt").touch()
    watching.poll()
    assert drain(watching) == [5]
    (source / "_CHECKPOINT_METADATA").unlink()
    watching.poll()
    watching.poll()
    assert drain(watching) == []


def test_one_of_old_orbax_is_taken_once_it_stays_the_same(tmp_path):
    watching = watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    (source / "_CHECKPOINT_METADATA").unlink()
    (source / "default" / "_METADATA").touch()
    (source / "default" / "more").touch()
    watching.poll()
    (source / "default" / "more").unlink()
    watching.poll()
    assert drain(watching) == []
    watching.poll()
    assert drain(watching) == [5]


def as_file(root, step, more=0):
    """A checkpoint in one file, as flax.training.checkpoints wrote it before Orbax."""
    path = Path(root) / f"checkpoint_{step}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x81\xa1a\xc4" + bytes([step, *range(more)]))
    return path


def test_a_file_is_taken_once_it_stays_the_same_and_pinned(tmp_path):
    watching = watcher(tmp_path)
    source = as_file(tmp_path / "ckpt", 5)
    os.utime(source, (1, 1))
    watching.poll()
    as_file(tmp_path / "ckpt", 5, more=3)  # it is still being written
    os.utime(source, (2, 2))
    watching.poll()
    assert watching.next(timeout=0) is None
    watching.poll()
    checkpoint = watching.next(timeout=0)
    content = source.read_bytes()
    source.unlink()
    assert checkpoint.readable.read_bytes() == content
    watching.done(checkpoint)
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_pinned_file_is_taken_up_by_the_next_run(tmp_path):
    watching = watcher(tmp_path)
    source = as_file(tmp_path / "ckpt", 5)
    watching.poll()
    watching.poll()
    source.unlink()
    (tmp_path / "pins" / "checkpoint_6.1006.partial").touch()
    second = watcher(tmp_path)
    second.start()
    second.stop()
    assert [path.name for path in (tmp_path / "pins").iterdir()] == [
        second.next(timeout=0).pin.name
    ]
    assert drain(second) == [5]


def test_only_the_items_that_are_needed_are_pinned_if_all_are_there(tmp_path):
    watching = watcher(tmp_path)
    watching.need({"query", "passage"})
    for step, items in {1: ("query", "passage", "optimizer"), 2: ("query", "other")}.items():
        for item in items:
            folder = save(tmp_path / "ckpt", step) / item
            folder.mkdir()
            (folder / "_METADATA").touch()
    watching.poll()
    first, second = (checkpoint.pin for checkpoint in watching.waiting())
    assert {path.name for path in first.iterdir() if path.is_dir()} == {"query", "passage"}
    assert {path.name for path in second.iterdir() if path.is_dir()} == {
        *("query", "other", "default")
    }


def test_it_is_finished_when_the_trainer_says_so_and_the_line_is_empty(tmp_path):
    watching = watcher(tmp_path)
    save(tmp_path / "ckpt", 1)
    watching.poll()
    assert not watching.finished
    (tmp_path / "ckpt" / "train_complete").touch()
    watching.poll()
    assert not watching.finished
    drain(watching)
    assert watching.finished


def test_a_checkpoint_that_precedes_train_complete_is_never_overlooked(tmp_path):
    save(tmp_path / "ckpt", 1)

    def listing(root):
        """The trainer saves its last step and finishes right after this listing."""
        found = committed(root)
        save(tmp_path / "ckpt", 2)
        (tmp_path / "ckpt" / "train_complete").touch()
        return found

    watching = watcher(tmp_path, listing=listing)
    watching.poll()
    assert drain(watching) == [1]
    assert not watching.finished
    watching.poll()
    assert drain(watching) == [2]
    assert watching.finished


def test_a_source_that_is_deleted_while_it_is_linked_has_vanished(tmp_path):
    source = save(tmp_path / "ckpt", 5)
    (checkpoint,) = committed(tmp_path / "ckpt")
    shutil.rmtree(source)
    with pytest.raises(VanishedError, match="deleted or replaced"):
        Pins(tmp_path / "pins", PinLimit()).take(checkpoint)
    assert list((tmp_path / "pins").glob("*")) == []


def test_a_source_that_was_replaced_is_not_pinned_under_the_old_name(tmp_path):
    save(tmp_path / "ckpt", 5, stamp=1)
    (checkpoint,) = committed(tmp_path / "ckpt")
    save(tmp_path / "ckpt", 5, stamp=2)
    with pytest.raises(VanishedError, match="deleted or replaced"):
        Pins(tmp_path / "pins", PinLimit()).take(checkpoint)


def test_where_links_are_refused_it_is_read_where_it_is(tmp_path, caplog):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    save(tmp_path / "ckpt", 5)
    pins = other / f"jaxval-test-{os.getpid()}"
    watching = Watcher(str(tmp_path / "ckpt"), pins, interval=1)
    try:
        watching.poll()
        assert watching.next(timeout=0).readable == tmp_path / "ckpt" / "5"
    finally:
        shutil.rmtree(pins, ignore_errors=True)
