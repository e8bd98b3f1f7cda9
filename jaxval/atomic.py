"""Writes files and folders as a whole: under a temporary name, synced to disk, then renamed.

A reader finds the old content or the new content, never a part of it. If a write fails, for
example on a full disk, the old content stays and the temporary file is removed. A killed
process leaves its temporary file or folder behind; `sweep` removes it a day later.

This module needs only the standard library, because trainers import `jaxval.signals`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_ABANDONED = 24 * 3600.0  # seconds


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Creates a file, or replaces it, as a whole.

    Args:
      path: The file. Its folder exists.

    Yields:
      The temporary file, which the block writes. It takes the place of `path` when the block
      ends without an error.

    Raises:
      OSError: The file cannot be written; the old file is unchanged.
    """
    sweep(path.parent.glob(f".{glob.escape(path.name)}.*.partial"))
    partial = _partial(path)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def make_partial(path: Path) -> Path:
    """Creates an empty folder beside `path`, in which its content is built.

    The caller removes the folder if the build fails, and calls `publish_folder` otherwise.

    Raises:
      OSError: The folder cannot be created.
    """
    partial = _partial(path)
    partial.mkdir(parents=True)
    return partial


def publish_folder(partial: Path, path: Path, taken: Callable[[], bool]) -> None:
    """Renames a complete folder to its final name, after its files are on disk.

    Args:
      partial: The folder that `make_partial` created.
      path: The final name. Nothing is there, or an empty folder.
      taken: Called if `path` is no longer empty. Returns whether another process has
        published the same content. `partial` is then not moved.

    Raises:
      OSError: The folder cannot be synced or renamed.
    """
    for inner in partial.rglob("*"):
        (_sync_folder if inner.is_dir() else _sync)(inner)
    _sync_folder(partial)
    try:
        partial.rename(path)
    except OSError:
        if not taken():
            raise
    _sync_folder(path.parent)


def sweep(partials: Iterable[Path]) -> None:
    """Removes the temporary files and folders of killed processes.

    Args:
      partials: Candidates. Those in which something has changed within a day are kept,
        because their process may still be writing.
    """
    for partial in partials:
        with contextlib.suppress(FileNotFoundError):  # renamed or removed by its process
            newest = max(path.lstat().st_mtime for path in (partial, *partial.rglob("*")))
            if newest < time.time() - _ABANDONED:
                _remove(partial)


def _partial(path: Path) -> Path:
    """Returns a temporary name beside `path`, unique among processes and machines."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Syncs the names in a folder, on file systems that support it."""
    with contextlib.suppress(OSError):
        _sync(path)
