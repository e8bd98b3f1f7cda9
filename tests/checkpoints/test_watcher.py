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
    """Writes a directory that looks like a committed checkpoint."""
    path = Path(root) / str(step)
    (path / "default").mkdir(parents=True, exist_ok=True)
    (path / "default" / "data").write_text(f"parameters of {step}")
    stamp = {"commit_timestamp_nsecs": stamp or 1000 + step}
    (path / "_CHECKPOINT_METADATA").write_text(json.dumps(stamp))
    return path


def make_watcher(tmp_path, **kwargs):
    return Watcher(str(tmp_path / "ckpt"), tmp_path / "pins", interval=0.02, **kwargs)


def drain(watcher):
    """Takes all checkpoints from the queue and returns their steps in order."""
    steps = []
    while (checkpoint := watcher.next(timeout=0)) is not None:
        steps.append(checkpoint.step)
        watcher.done(checkpoint)
    return steps


def test_every_checkpoint_is_queued_once_in_step_order(tmp_path):
    watcher = make_watcher(tmp_path)
    for step in (30, 4, 100):
        save(tmp_path / "ckpt", step)
    watcher.poll()
    watcher.poll()
    assert drain(watcher) == [4, 30, 100]
    watcher.poll()
    assert drain(watcher) == []


def test_a_pin_remains_when_the_trainer_deletes_the_checkpoint(tmp_path):
    watcher = make_watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    watcher.poll()
    shutil.rmtree(source)
    checkpoint = watcher.next(timeout=0)
    assert checkpoint.path == source
    assert (checkpoint.readable / "default" / "data").read_text() == "parameters of 5"
    watcher.done(checkpoint)
    assert list((tmp_path / "pins").iterdir()) == []


def test_the_thread_pins_checkpoints_that_are_deleted_soon(tmp_path):
    watcher = make_watcher(tmp_path)
    watcher.start()
    seen = []
    for step in range(8):
        source = save(tmp_path / "ckpt", step)
        while len(watcher.waiting()) <= step:
            threading.Event().wait(0.01)
        shutil.rmtree(source)
    watcher.stop()
    seen = drain(watcher)
    assert seen == list(range(8))


def test_a_restart_queues_pins_and_removes_incomplete_ones(tmp_path):
    first = make_watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    first.poll()
    shutil.rmtree(source)
    (tmp_path / "pins" / "6.1006.partial").mkdir()
    second = make_watcher(tmp_path)
    second.start()
    second.stop()
    checkpoint = second.next(timeout=0)
    assert (checkpoint.step, checkpoint.commit_ns, checkpoint.path) == (5, 1005, source)
    assert drain(second) == [5]
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_step_saved_again_is_queued_again(tmp_path):
    watcher = make_watcher(tmp_path)
    save(tmp_path / "ckpt", 5, stamp=1)
    watcher.poll()
    assert drain(watcher) == [5]
    save(tmp_path / "ckpt", 5, stamp=2)
    watcher.poll()
    assert drain(watcher) == [5]


def test_a_checkpoint_that_is_being_deleted_is_not_queued(tmp_path):
    watcher = make_watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    (source / "commit_success.txt").touch()
    watcher.poll()
    assert drain(watcher) == [5]
    (source / "_CHECKPOINT_METADATA").unlink()
    watcher.poll()
    watcher.poll()
    assert drain(watcher) == []


def test_a_checkpoint_of_old_orbax_is_queued_when_it_does_not_change(tmp_path):
    watcher = make_watcher(tmp_path)
    source = save(tmp_path / "ckpt", 5)
    (source / "_CHECKPOINT_METADATA").unlink()
    (source / "default" / "_METADATA").touch()
    (source / "default" / "more").touch()
    watcher.poll()
    (source / "default" / "more").unlink()
    watcher.poll()
    assert drain(watcher) == []
    watcher.poll()
    assert drain(watcher) == [5]


def as_file(root, step, more=0):
    """Writes a checkpoint of one file, as flax.training.checkpoints did before Orbax."""
    path = Path(root) / f"checkpoint_{step}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x81\xa1a\xc4" + bytes([step, *range(more)]))
    return path


def test_a_file_is_queued_and_pinned_when_it_does_not_change(tmp_path):
    watcher = make_watcher(tmp_path)
    source = as_file(tmp_path / "ckpt", 5)
    os.utime(source, (1, 1))
    watcher.poll()
    as_file(tmp_path / "ckpt", 5, more=3)  # it is not complete yet
    os.utime(source, (2, 2))
    watcher.poll()
    assert watcher.next(timeout=0) is None
    watcher.poll()
    checkpoint = watcher.next(timeout=0)
    content = source.read_bytes()
    source.unlink()
    assert checkpoint.readable.read_bytes() == content
    watcher.done(checkpoint)
    assert list((tmp_path / "pins").iterdir()) == []


def test_the_next_run_queues_a_pinned_file(tmp_path):
    watcher = make_watcher(tmp_path)
    source = as_file(tmp_path / "ckpt", 5)
    watcher.poll()
    watcher.poll()
    source.unlink()
    (tmp_path / "pins" / "checkpoint_6.1006.partial").touch()
    second = make_watcher(tmp_path)
    second.start()
    second.stop()
    assert [path.name for path in (tmp_path / "pins").iterdir()] == [
        second.next(timeout=0).pin.name
    ]
    assert drain(second) == [5]


def test_only_needed_items_are_pinned_if_all_of_them_exist(tmp_path):
    watcher = make_watcher(tmp_path)
    watcher.need({"query", "passage"})
    for step, items in {1: ("query", "passage", "optimizer"), 2: ("query", "other")}.items():
        for item in items:
            folder = save(tmp_path / "ckpt", step) / item
            folder.mkdir()
            (folder / "_METADATA").touch()
    watcher.poll()
    first, second = (checkpoint.pin for checkpoint in watcher.waiting())
    assert {path.name for path in first.iterdir() if path.is_dir()} == {"query", "passage"}
    assert {path.name for path in second.iterdir() if path.is_dir()} == {
        *("query", "other", "default")
    }


def test_watching_is_finished_when_training_is_complete_and_the_queue_is_empty(tmp_path):
    watcher = make_watcher(tmp_path)
    save(tmp_path / "ckpt", 1)
    watcher.poll()
    assert not watcher.finished
    (tmp_path / "ckpt" / "train_complete").touch()
    watcher.poll()
    assert not watcher.finished
    drain(watcher)
    assert watcher.finished


def test_a_checkpoint_that_precedes_train_complete_is_never_missed(tmp_path):
    save(tmp_path / "ckpt", 1)

    def listing(root):
        """The trainer saves its last step and finishes right after this listing."""
        listed = committed(root)
        save(tmp_path / "ckpt", 2)
        (tmp_path / "ckpt" / "train_complete").touch()
        return listed

    watcher = make_watcher(tmp_path, listing=listing)
    watcher.poll()
    assert drain(watcher) == [1]
    assert not watcher.finished
    watcher.poll()
    assert drain(watcher) == [2]
    assert watcher.finished


def test_a_checkpoint_deleted_while_it_is_pinned_has_vanished(tmp_path):
    source = save(tmp_path / "ckpt", 5)
    (checkpoint,) = committed(tmp_path / "ckpt")
    shutil.rmtree(source)
    with pytest.raises(VanishedError, match="deleted or replaced"):
        Pins(tmp_path / "pins", PinLimit()).take(checkpoint)
    assert list((tmp_path / "pins").glob("*")) == []


def test_a_checkpoint_replaced_while_it_is_pinned_has_vanished(tmp_path):
    save(tmp_path / "ckpt", 5, stamp=1)
    (checkpoint,) = committed(tmp_path / "ckpt")
    save(tmp_path / "ckpt", 5, stamp=2)
    with pytest.raises(VanishedError, match="deleted or replaced"):
        Pins(tmp_path / "pins", PinLimit()).take(checkpoint)


def test_without_hard_links_a_checkpoint_is_read_where_it_was_written(tmp_path, other_disk):
    save(tmp_path / "ckpt", 5)
    watcher = Watcher(str(tmp_path / "ckpt"), other_disk / "pins", interval=1)
    watcher.poll()
    assert watcher.next(timeout=0).readable == tmp_path / "ckpt" / "5"
