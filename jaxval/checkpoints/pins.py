"""Pins: hard links that keep a checkpoint readable after its trainer has deleted it.

A pin is a directory `<name>.<commit_ns>` whose files are hard links to the trainer's, or
such a link itself where the checkpoint is one file, so it costs no space until the trainer
deletes its own. It is built under another name and
renamed when whole, so whatever has a pin's name is a pin.
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
from jaxval.records import Checkpoint, PinLimit

_PARTIAL = ".partial"
_REFUSALS = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.EROFS}
)


class LinksUnsupported(OSError):
    """No checkpoint can be linked from there to here: there is no use in trying again."""


class PinLimitReached(OSError):
    """As many checkpoints, or bytes, are pinned as may be."""


class Pins:
    """The pins in one directory, which belongs to jaxval alone.

    Attributes:
      items: those of a checkpoint that are linked, where it has them all; none for the whole.
    """

    def __init__(self, directory: Path, limit: PinLimit):
        self.items: frozenset[str] = frozenset()
        self._directory = directory
        self._limit = limit
        self._sizes: dict[tuple[str, int], int] = {}

    def take(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, to be read from its pin.

        Raises:
          VanishedError: the source changed while its files were linked.
          AtLimit: one more would be too many.
          Refused, OSError: the file system does not make the links; never, or not now.
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
            # Under the other name first: what a kill leaves half-removed is then no pin.
            partial = pin.with_name(pin.name + _PARTIAL)
            _remove(partial)
            pin.rename(partial)
            _remove(partial)
        self._sizes.pop(checkpoint.identity, None)

    def left_behind(self, root: epath.Path) -> list[Checkpoint]:
        """The whole pins that an earlier run made of checkpoints in `root`, in step order.

        Unfinished ones are removed.
        """
        if not self._directory.is_dir():
            return []
        found = []
        for path in self._directory.iterdir():
            if path.name.endswith(_PARTIAL):
                _remove(path)
            elif (checkpoint := _parse(path, root)) is not None:
                self._sizes[checkpoint.identity] = _bytes(path)
                found.append(checkpoint)
        return sorted(found)

    def _pin(self, checkpoint: Checkpoint) -> Path:
        return self._directory / f"{checkpoint.name}.{checkpoint.commit_ns}"

    def _make(self, checkpoint: Checkpoint, pin: Path) -> None:
        self._check_limit()
        _build(checkpoint, pin, self.items)

    def _check_limit(self) -> None:
        count, size = len(self._sizes), sum(self._sizes.values())
        if self._limit.count is not None and count >= self._limit.count:
            raise PinLimitReached(
                f"{count} checkpoints are pinned already, as `max_pins` allows"
            )
        if self._limit.bytes is not None and size >= self._limit.bytes:
            raise PinLimitReached(
                f"{size / 2**30:.1f} GiB are pinned already (`max_pinned_gib`)"
            )


def _build(checkpoint: Checkpoint, pin: Path, items: Collection[str]) -> None:
    source = Path(checkpoint.path)
    partial = pin.with_name(pin.name + _PARTIAL)
    _remove(partial)
    try:
        before = files(source)
        for name in _needed(source, before, items):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source / name, partial / name)
        # A directory that is being deleted shrinks: only an unchanged one was whole.
        if not before or files(source) != before:
            raise FileNotFoundError(source)
        if read_commit(epath.Path(source)) != checkpoint:
            raise FileNotFoundError(source)
        partial.rename(pin)
    except OSError as error:
        _remove(partial)
        raise _told(error, source) from error


def _remove(pin: Path) -> None:
    if pin.is_file():
        pin.unlink(missing_ok=True)
    shutil.rmtree(pin, ignore_errors=True)


def _told(error: OSError, source: Path) -> Exception:
    if isinstance(error, FileNotFoundError):
        return VanishedError(f"{source}: it was deleted or replaced while it was pinned")
    if error.errno in _REFUSALS:
        return LinksUnsupported(f"{error.strerror or error}")
    return error


def _needed(source: Path, names: Sequence[str], items: Collection[str]) -> Sequence[str]:
    """The checkpoint's own files and those of the items, if it has them all."""
    if not items or not all((source / item / "_METADATA").is_file() for item in items):
        return names
    if "" in items:  # it is itself the tree
        return names
    return [name for name in names if "/" not in name or name.partition("/")[0] in items]


def _bytes(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in files(directory))


def _parse(path: Path, root: epath.Path) -> Checkpoint | None:
    name, _, commit = path.name.rpartition(".")
    step = name.rpartition("_")[2]
    if not (commit.isdigit() and step.isdigit()):
        return None
    return Checkpoint(int(step), name, int(commit), root / name, path)
