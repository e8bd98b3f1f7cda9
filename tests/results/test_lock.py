"""Two real processes and one directory: a lock that holds only within one would hold nobody."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxval.errors import UserError
from jaxval.results import lock

HOLD = """
import pathlib, sys, time
from jaxval.results import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(directory):
    """Another process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def hold_soon(directory):
    """The kernel releases a dead process's lock when it has cleared it away."""
    end = time.monotonic() + 10
    while True:
        try:
            return lock.hold(directory).__enter__()
        except UserError:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_second_is_told_who_holds_it_and_the_first_goes_on(tmp_path):
    with holder(tmp_path / "out") as first:
        for _ in range(2):
            with (
                pytest.raises(UserError, match=rf"in use by process {first.pid} on ") as told,
                lock.hold(tmp_path / "out"),
            ):
                pass
        assert told.value.status == 2
        assert "stop it, or choose another" in str(told.value)
        assert first.poll() is None


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_is_killed_holds_it_no_longer(tmp_path, sent):
    with holder(tmp_path) as first:
        first.send_signal(sent)
        first.wait(10)
        hold_soon(tmp_path)
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_it_is_released_at_the_end_also_of_one_that_fails(tmp_path):
    with pytest.raises(RuntimeError), lock.hold(tmp_path):
        raise RuntimeError
    with lock.hold(tmp_path):
        pass


def test_the_name_of_a_former_holder_does_not_hold(tmp_path):
    (tmp_path / "lock").write_text("process 1 on another-machine, since a week\n" * 9)
    with lock.hold(tmp_path):
        assert (tmp_path / "lock").read_text().count("process") == 1


def test_a_child_that_outlives_the_holder_does_not_hold(tmp_path):
    with lock.hold(tmp_path):
        child = subprocess.Popen(["sleep", "30"])
    try:
        with lock.hold(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_directory_that_cannot_be_made_is_the_users_fault(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), lock.hold(tmp_path / Path(below)):
        pass
