"""Two processes and one directory: the lock must exclude the second process."""

import contextlib
import errno
import logging
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
    """Yields another process, which holds the directory."""
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
    """Takes the lock of a process that has just died, which the kernel releases soon."""
    end = time.monotonic() + 10
    while True:
        try:
            return lock.hold(directory).__enter__()
        except UserError:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_second_process_is_refused_with_the_name_of_the_holder(tmp_path):
    with holder(tmp_path / "out") as first:
        for _ in range(2):
            with (
                pytest.raises(UserError, match=rf"in use by process {first.pid} on ") as told,
                lock.hold(tmp_path / "out"),
            ):
                pass
        assert told.value.status == 2
        assert "stop that process, or choose another directory" in str(told.value)
        assert first.poll() is None


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_releases_the_lock(tmp_path, sent):
    with holder(tmp_path) as first:
        first.send_signal(sent)
        first.wait(10)
        hold_soon(tmp_path)
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), lock.hold(tmp_path):
        raise RuntimeError
    with lock.hold(tmp_path):
        pass


def test_the_name_of_a_former_holder_is_replaced(tmp_path):
    (tmp_path / "lock").write_text("process 1 on another-machine, since a week\n" * 9)
    with lock.hold(tmp_path):
        assert (tmp_path / "lock").read_text().count("process") == 1


def test_a_child_process_does_not_inherit_the_lock(tmp_path):
    with lock.hold(tmp_path):
        child = subprocess.Popen(["sleep", "30"])
    try:
        with lock.hold(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_directory_that_cannot_be_created_is_a_user_error(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), lock.hold(tmp_path / Path(below)):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog, code):
    def refuse(descriptor, blocking):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock, "lock_descriptor", refuse)
    with caplog.at_level(logging.WARNING), lock.hold(tmp_path), lock.hold(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    assert len(caplog.messages) == 2
    assert f"{tmp_path} is on a file system without locks" in caplog.messages[0]
    assert os.strerror(code) in caplog.messages[0]
