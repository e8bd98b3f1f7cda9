"""One writer: whoever holds OUTPUT_DIR/lock may write there."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jaxval.errors import UserError

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Holds the directory while the context lasts; a kill releases it too.

    Raises:
      UserError: another process holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(directory, error) from error
    with file:
        _lock(file.fileno(), directory)
        since = datetime.datetime.now().isoformat(" ", "seconds")
        sign = f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
        try:
            file.truncate(0)
            file.write(sign.encode())
        except OSError as error:
            raise _unwritable(directory, error) from error
        yield


def _unwritable(directory: Path, error: OSError) -> UserError:
    return UserError(f"`output_dir={directory}` cannot be written: {error}")


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = (directory / "lock").read_text().strip() or "another process"
        raise UserError(
            f"`output_dir={directory}` is in use by {holder}: stop it, or choose another"
        ) from None
    except OSError as error:
        _LOG.warning(
            "%s is on a file system without locks (%s): see to it that only one jaxval writes"
            " there, or put `output_dir` on a local disk. A second one would waste work, but"
            " not harm the ledger",
            directory,
            error,
        )
