import threading
import time
from pathlib import Path

import pytest

from jaxval.checkpoints.prefetch import Prefetcher
from jaxval.errors import CorruptError, UnreadableError
from jaxval.records import Checkpoint


def checkpoint(step, pinned=True):
    pin = Path(f"/pins/{step}") if pinned else None
    return Checkpoint(step, str(step), 1000 + step, Path(f"/c/{step}"), pin)


class Disk:
    """Restores a checkpoint as its step and records the order.

    It can raise errors, and blocks while `open` is not set.
    """

    def __init__(self, **failures):
        self.read = []
        self.failures = {int(step[1:]): list(errors) for step, errors in failures.items()}
        self.open = threading.Event()
        self.open.set()

    def __call__(self, checkpoint):
        self.read.append(checkpoint.step)
        assert self.open.wait(20)
        if self.failures.get(checkpoint.step):
            raise self.failures[checkpoint.step].pop(0)
        return checkpoint.step


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def make():
    """Returns a function that makes a Prefetcher for a queue; all are stopped at the end."""
    made = []

    def make_prefetcher(queue, disk, capacity=2, **kwargs):
        made.append(Prefetcher(lambda: list(queue), disk, capacity, **kwargs))
        return made[-1]

    yield make_prefetcher
    for prefetcher in made:
        prefetcher.stop()


def take(prefetcher, queue):
    """Takes the first checkpoint of the queue, then removes it, as the session does."""
    step = prefetcher.take(queue[0])
    queue.pop(0)
    return step


def test_checkpoints_are_read_once_and_taken_in_order(make):
    queue, disk = [checkpoint(step) for step in range(12)], Disk()
    prefetcher = make(queue, disk)
    prefetcher.start()
    assert [take(prefetcher, queue) for _ in range(12)] == list(range(12))
    assert sorted(disk.read) == list(range(12))


def test_taking_a_checkpoint_while_it_is_read_does_not_read_it_again(make):
    """Otherwise a checkpoint that the trainer deletes in between would be lost."""
    for _ in range(30):
        queue, disk = [checkpoint(1), checkpoint(2)], Disk()
        disk.open.clear()
        prefetcher = make(queue, disk)
        prefetcher.start()
        until(lambda disk=disk: disk.read == [1])
        threading.Timer(0.005, disk.open.set).start()
        assert take(prefetcher, queue) == 1
        assert disk.read.count(1) == 1


def test_no_more_checkpoints_than_the_capacity_are_read(make):
    queue, disk = [checkpoint(step) for step in range(6)], Disk()
    make(queue, disk).start()
    until(lambda: len(disk.read) == 2)
    time.sleep(0.5)
    assert disk.read == [0, 1]


def test_unpinned_checkpoints_are_read_first(make):
    queue = [checkpoint(1), checkpoint(2), checkpoint(3, pinned=False), checkpoint(4)]
    disk = Disk()
    make(queue, disk).start()
    until(lambda: len(disk.read) == 2)
    assert disk.read == [3, 1]


def test_a_newer_checkpoint_replaces_one_that_moved_back_in_the_queue(make):
    queue, disk = [checkpoint(1)], Disk()
    prefetcher = make(queue, disk, capacity=1)
    prefetcher.start()
    until(lambda: disk.read == [1])
    queue.insert(0, checkpoint(2))  # a newer one, with --order=newest
    until(lambda: disk.read == [1, 2])
    assert [take(prefetcher, queue), take(prefetcher, queue)] == [2, 1]


def test_an_error_is_raised_when_the_checkpoint_is_taken(make):
    queue, disk = [checkpoint(1), checkpoint(2)], Disk(_1=[CorruptError("cut short")])
    prefetcher = make(queue, disk)
    prefetcher.start()
    until(lambda: len(disk.read) == 2)
    with pytest.raises(CorruptError, match="cut short"):
        prefetcher.take(queue.pop(0))
    assert take(prefetcher, queue) == 2


@pytest.mark.parametrize("started", [True, False])
def test_reading_is_attempted_again_after_errors_of_the_file_system(make, started):
    queue = [checkpoint(1)]
    disk = Disk(_1=[OSError("stale handle"), TimeoutError("slow")])
    prefetcher = make(queue, disk, back_off=(0.01, 0.01))
    if started:
        prefetcher.start()
    assert take(prefetcher, queue) == 1
    assert (disk.read, prefetcher.retried) == ([1, 1, 1], 2)


def test_a_checkpoint_that_keeps_failing_is_unreadable(make):
    queue = [checkpoint(1), checkpoint(2)]
    disk = Disk(_1=[OSError("stale handle")] * 9)
    prefetcher = make(queue, disk, back_off=(0.01, 0.01))
    prefetcher.start()
    with pytest.raises(UnreadableError, match="step 1 could not be read in 3 attempts: stale"):
        prefetcher.take(queue.pop(0))
    assert take(prefetcher, queue) == 2


def test_stop_interrupts_the_pause_between_attempts(make):
    disk = Disk(_1=[OSError("stale handle")] * 9)
    prefetcher = make([checkpoint(1)], disk, back_off=(60.0, 60.0))
    prefetcher.start()
    until(lambda: disk.read)
    start = time.monotonic()
    prefetcher.stop()
    assert time.monotonic() - start < 5
