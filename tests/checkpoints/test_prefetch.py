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
    """Restores a checkpoint as its step, and notes the order; may fail, or wait to be let."""

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
def ahead():
    """Makes an Ahead that reads the given line, and stops it in the end."""
    made = []

    def make(line, disk, capacity=2, **kwargs):
        made.append(Prefetcher(lambda: list(line), disk, capacity, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def take(reading, line):
    """As the loop does it: the first of the line, which leaves it when it is done."""
    step = reading.take(line[0])
    line.pop(0)
    return step


def test_each_is_read_once_and_handed_out_in_order(ahead):
    line, disk = [checkpoint(step) for step in range(12)], Disk()
    reading = ahead(line, disk)
    reading.start()
    assert [take(reading, line) for _ in range(12)] == list(range(12))
    assert sorted(disk.read) == list(range(12))


def test_one_that_is_asked_for_while_it_is_read_is_not_read_again(ahead):
    """Else one that the trainer deleted in between would be lost although it was read."""
    for _ in range(30):
        line, disk = [checkpoint(1), checkpoint(2)], Disk()
        disk.open.clear()
        reading = ahead(line, disk)
        reading.start()
        until(lambda disk=disk: disk.read == [1])
        threading.Timer(0.005, disk.open.set).start()
        assert take(reading, line) == 1
        assert disk.read.count(1) == 1


def test_no_more_are_held_than_may_be(ahead):
    line, disk = [checkpoint(step) for step in range(6)], Disk()
    ahead(line, disk).start()
    until(lambda: len(disk.read) == 2)
    time.sleep(0.5)
    assert disk.read == [0, 1]


def test_what_could_not_be_pinned_is_read_first(ahead):
    line = [checkpoint(1), checkpoint(2), checkpoint(3, pinned=False), checkpoint(4)]
    disk = Disk()
    ahead(line, disk).start()
    until(lambda: len(disk.read) == 2)
    assert disk.read == [3, 1]


def test_one_that_fell_behind_makes_room(ahead):
    line, disk = [checkpoint(1)], Disk()
    reading = ahead(line, disk, capacity=1)
    reading.start()
    until(lambda: disk.read == [1])
    line.insert(0, checkpoint(2))  # a newer one, with --order=newest
    until(lambda: disk.read == [1, 2])
    assert [take(reading, line), take(reading, line)] == [2, 1]


def test_a_fault_is_raised_where_the_checkpoint_is_asked_for(ahead):
    line, disk = [checkpoint(1), checkpoint(2)], Disk(_1=[CorruptError("cut short")])
    reading = ahead(line, disk)
    reading.start()
    until(lambda: len(disk.read) == 2)
    with pytest.raises(CorruptError, match="cut short"):
        reading.take(line.pop(0))
    assert take(reading, line) == 2


@pytest.mark.parametrize("started", [True, False])
def test_a_file_system_that_hiccups_is_asked_again(ahead, started):
    line = [checkpoint(1)]
    disk = Disk(_1=[OSError("stale handle"), TimeoutError("slow")])
    reading = ahead(line, disk, back_off=(0.01, 0.01))
    if started:
        reading.start()
    assert take(reading, line) == 1
    assert (disk.read, reading.retried) == ([1, 1, 1], 2)


def test_one_that_keeps_failing_is_unreadable_and_the_next_is_not(ahead):
    line = [checkpoint(1), checkpoint(2)]
    disk = Disk(_1=[OSError("stale handle")] * 9)
    reading = ahead(line, disk, back_off=(0.01, 0.01))
    reading.start()
    with pytest.raises(UnreadableError, match="step 1 could not be read in 3 attempts: stale"):
        reading.take(line.pop(0))
    assert take(reading, line) == 2


def test_it_stops_while_it_waits_for_the_file_system(ahead):
    disk = Disk(_1=[OSError("stale handle")] * 9)
    reading = ahead([checkpoint(1)], disk, back_off=(60.0, 60.0))
    reading.start()
    until(lambda: disk.read)
    start = time.monotonic()
    reading.stop()
    assert time.monotonic() - start < 5
