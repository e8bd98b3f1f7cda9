"""Room on the disk before a write, and signals during one."""

import os
import shutil
import signal
from types import SimpleNamespace

import pytest

from jaxval.results.writing import signals_deferred, wait_for_room

MIB = 2**20


def test_it_waits_until_the_file_and_a_reserve_have_room(tmp_path, monkeypatch):
    free = iter([9 * MIB, 11 * MIB - 1, 11 * MIB])

    def disk_usage(path):
        return SimpleNamespace(free=next(free))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    pauses = []
    wait_for_room(tmp_path, 3 * MIB, pauses.append)
    assert len(pauses) == 2
    assert next(free, None) is None


def test_with_room_it_does_not_wait(tmp_path):
    wait_for_room(tmp_path, 1, pytest.fail)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_delivered_after_the_block(number):
    events = []

    def handler(received, _):
        events.append(received)

    before = signal.signal(number, handler)
    try:
        with signals_deferred():
            os.kill(os.getpid(), number)
            events.append("written")
        assert events == ["written", number]
        os.kill(os.getpid(), number)
        assert events == ["written", number, number]
    finally:
        signal.signal(number, before)


def test_a_signal_is_delivered_although_the_block_fails():
    @signals_deferred()
    def fail():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError

    with pytest.raises(KeyboardInterrupt):
        fail()
