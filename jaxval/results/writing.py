"""Guards around writes: room on the disk before them, no signal within them."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
_RESERVE = 8 * 2**20  # bytes
_PAUSE = 5.0  # seconds
_MIB = 2**20


def wait_for_room(directory: Path, size: int, sleep: Callable[[float], None]) -> None:
    """Waits until the disk has room for what is to be written, so that nothing is cut short.

    Args:
      directory: Where it is to be written.
      size: Its size in bytes. 8 MiB are added for the ledger and the trackers.
      sleep: Waits for a number of seconds.
    """
    logged, needed = False, size + _RESERVE
    while (free := shutil.disk_usage(directory).free) < needed:
        if not logged:
            _LOG.error(
                "%s has %.1f MiB of free space and needs %.1f: waiting until there is room",
                directory,
                free / _MIB,
                needed / _MIB,
            )
        logged = True
        sleep(_PAUSE)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defers SIGINT and SIGTERM, so that a committed row is also shown and counted."""
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
