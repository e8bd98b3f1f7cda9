"""Pins: hard links that keep a checkpoint readable after its trainer has deleted it.

A pin is a directory `<name>.<commit_ns>` of hard links to the trainer's files, or one hard
link if the checkpoint is one file. It takes no space until the trainer deletes its files. It
is built under another name and renamed when it is complete.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from etils import epath

from jaxval.checkpoints.commit import files, read_commit
from jaxval.errors import VanishedError
from jaxval.records import Checkpoint, Identity, PinLimit

_PARTIAL = ".partial"
_REFUSALS = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.EROFS}
)


class LinksUnsupported(OSError):
    """The file systems do not support hard links from the checkpoints to the pins."""


class PinLimitReached(OSError):
    """The maximum number of checkpoints, or of bytes, is pinned."""


class Pins:
    """The pins in one directory, which only jaxval writes to.

    Args:
      directory: Where the pins are; created with the first pin.
      limit: How many checkpoints and bytes may be pinned.

    Attributes:
      items: The items of a checkpoint to link if it has all of them; empty for all files.
    """

    def __init__(self, directory: Path, limit: PinLimit):
        self.items: frozenset[str] = frozenset()
        self._directory = directory
        self._limit = limit
        self._sizes: dict[Identity, int] = {}

    def take(self, checkpoint: Checkpoint) -> Checkpoint:
        """Pins a checkpoint, and returns it with the path of its pin.

        Raises:
          VanishedError: The checkpoint changed while its files were linked.
          PinLimitReached: No further checkpoint may be pinned now.
          LinksUnsupported: No checkpoint can be pinned.
          OSError: The file system failed; a later attempt may succeed.
        """
        if "://" in str(checkpoint.path):
            raise LinksUnsupported("an object store has no hard links")
        pin = self._pin(checkpoint)
        if not pin.exists():
            self._make(checkpoint, pin)
        self._sizes[checkpoint.identity] = _bytes(pin)
        return dataclasses.replace(checkpoint, pin=pin)

    def release(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint's pin, if it has one."""
        pin = self._pin(checkpoint)
        if pin.exists():
            # Renamed first: if jaxval is killed here, the rest is not taken for a pin.
            partial = pin.with_name(pin.name + _PARTIAL)
            _remove(partial)
            pin.rename(partial)
            _remove(partial)
        self._sizes.pop(checkpoint.identity, None)

    def left_behind(self, root: epath.Path) -> list[Checkpoint]:
        """Returns the checkpoints in `root` that an earlier run pinned, in step order.

        Incomplete pins are removed.
        """
        if not self._directory.is_dir():
            return []
        pinned = []
        for path in self._directory.iterdir():
            if path.name.endswith(_PARTIAL):
                _remove(path)
            elif (checkpoint := _parse(path, root)) is not None:
                self._sizes[checkpoint.identity] = _bytes(path)
                pinned.append(checkpoint)
        return sorted(pinned)

    def _pin(self, checkpoint: Checkpoint) -> Path:
        return self._directory / f"{checkpoint.name}.{checkpoint.commit_ns}"

    def _make(self, checkpoint: Checkpoint, pin: Path) -> None:
        self._check_limit()
        _build(checkpoint, pin, self.items)

    def _check_limit(self) -> None:
        count, size = len(self._sizes), sum(self._sizes.values())
        if self._limit.count is not None and count >= self._limit.count:
            raise PinLimitReached(
                f"{count} checkpoints are pinned already, which is the limit (`max_pins`)"
            )
        if self._limit.bytes is not None and size >= self._limit.bytes:
            raise PinLimitReached(
                f"{size / 2**30:.1f} GiB are pinned already, which is the limit"
                " (`max_pinned_gib`)"
            )


def _build(checkpoint: Checkpoint, pin: Path, items: Collection[str]) -> None:
    source = Path(checkpoint.path)
    partial = pin.with_name(pin.name + _PARTIAL)
    _remove(partial)
    try:
        before = files(source)
        for name in _to_link(source, before, items):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source / name, partial / name)
        # Files may have been deleted meanwhile: only an unchanged directory was complete.
        if not before or files(source) != before:
            raise FileNotFoundError(source)
        if read_commit(epath.Path(source)) != checkpoint:
            raise FileNotFoundError(source)
        partial.rename(pin)
    except OSError as error:
        _remove(partial)
        raise _classified(error, source) from error


def _remove(pin: Path) -> None:
    if pin.is_file():
        pin.unlink(missing_ok=True)
    shutil.rmtree(pin, ignore_errors=True)


def _classified(error: OSError, source: Path) -> Exception:
    """Returns the error that `Pins.take` raises for an error of the file system."""
    if isinstance(error, FileNotFoundError):
        return VanishedError(
            f"{source} was deleted or replaced while it was pinned; let the trainer keep more"
            " checkpoints"
        )
    if error.errno in _REFUSALS:
        return LinksUnsupported(f"{error.strerror or error}")
    return error


def _to_link(source: Path, names: Sequence[str], items: Collection[str]) -> Sequence[str]:
    """Returns the files to link: those outside of all items, and those of the given items.

    If the checkpoint lacks one of the items, all files are linked.
    """
    if not items or not all((source / item / "_METADATA").is_file() for item in items):
        return names
    if "" in items:  # the checkpoint's directory is itself the tree
        return names
    return [name for name in names if "/" not in name or name.partition("/")[0] in items]


def _bytes(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in files(directory))


def _parse(path: Path, root: epath.Path) -> Checkpoint | None:
    """Returns the checkpoint in `root` that `path` pins, or None if `path` is no pin."""
    name, _, commit = path.name.rpartition(".")
    step = name.rpartition("_")[2]
    if not (commit.isdigit() and step.isdigit()):
        return None
    return Checkpoint(int(step), name, int(commit), root / name, path)
