"""Folders that are built under another name, `….partial`, and renamed when they are whole."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

_ABANDONED = 24 * 3600.0  # seconds


def sweep(partials: Iterable[Path]) -> None:
    """Removes what builds that were killed have left: nothing in it grew for a day."""
    for partial in partials:
        with contextlib.suppress(FileNotFoundError):  # its builder may be at work
            newest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if newest < time.time() - _ABANDONED:
                shutil.rmtree(partial, ignore_errors=True)
