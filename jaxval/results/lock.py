"""The lock on an output directory: one jaxval process writes there at a time."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from jaxval.errors import UserError

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Holds `directory/lock` until the context ends or the process dies.

    The file names its holder, and stays when the lock is released. On a file system without
    locks, a warning is logged and the context runs without one.

    Args:
      directory: Created if it does not exist.

    Raises:
      UserError: Another process holds the lock, or the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(directory, error) from error
    with file:
        _lock(file.fileno(), directory)
        since = datetime.datetime.now().isoformat(" ", "seconds")
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
        try:
            file.truncate(0)
            file.write(holder.encode())
        except OSError as error:
            raise _unwritable(directory, error) from error
        yield


def _unwritable(directory: Path, error: OSError) -> UserError:
    return UserError(f"`output_dir={directory}` cannot be written: {error}")


def _lock(descriptor: int, directory: Path) -> None:
    try:
        locked = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        _LOG.warning(
            "%s is on a file system without locks (%s): make sure that only one jaxval writes"
            " there, or put `output_dir` on a local disk. A second process would repeat work,"
            " but not damage the ledger",
            directory,
            error,
        )
        return
    if not locked:
        holder = (directory / "lock").read_text().strip() or "another process"
        raise UserError(
            f"`output_dir={directory}` is in use by {holder}: stop that process, or choose"
            " another directory"
        )
