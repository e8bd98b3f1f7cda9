"""Pins: hard links that keep a checkpoint readable after its trainer has deleted it.

A pin is a directory `<name>.<commit_ns>` whose files are hard links to the trainer's, so
it costs no space until the trainer deletes its own. It is built under another name and
renamed when whole, so whatever has a pin's name is a pin.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from etils import epath

from jaxval.checkpoints.commit import files, read_commit
from jaxval.errors import VanishedError
from jaxval.records import Checkpoint

_PARTIAL = ".partial"


class Pins:
    """The pins in one directory, which belongs to jaxval alone."""

    def __init__(self, directory: Path):
        self._directory = directory

    def take(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, to be read from its pin.

        Raises:
          VanishedError: the source changed while its files were linked.
          OSError: the file system refuses hard links from there to here.
        """
        if "://" in str(checkpoint.path):
            raise OSError("an object store has no hard links")
        pin = self._pin(checkpoint)
        if not pin.exists():
            _build(Path(checkpoint.path), pin)
            if read_commit(epath.Path(checkpoint.path)) != checkpoint:
                shutil.rmtree(pin)
                raise VanishedError(f"{checkpoint.path}: it was replaced while it was pinned")
        return dataclasses.replace(checkpoint, pin=pin)

    def release(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint's pin, if it has one."""
        shutil.rmtree(self._pin(checkpoint), ignore_errors=True)

    def left_behind(self, root: epath.Path) -> list[Checkpoint]:
        """The whole pins that an earlier run made of checkpoints in `root`, in step order.

        Unfinished ones are removed.
        """
        if not self._directory.is_dir():
            return []
        found = []
        for path in self._directory.iterdir():
            if path.name.endswith(_PARTIAL):
                shutil.rmtree(path)
            elif (checkpoint := _parse(path, root)) is not None:
                found.append(checkpoint)
        return sorted(found)

    def _pin(self, checkpoint: Checkpoint) -> Path:
        return self._directory / f"{checkpoint.name}.{checkpoint.commit_ns}"


def _build(source: Path, pin: Path) -> None:
    partial = pin.with_name(pin.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        before = files(source)
        for name in before:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source / name, partial / name)
        # A directory that is being deleted shrinks: only an unchanged one was whole.
        if not before or files(source) != before:
            raise FileNotFoundError(source)
        partial.rename(pin)
    except FileNotFoundError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise VanishedError(f"{source}: it was deleted while it was pinned") from error
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _parse(path: Path, root: epath.Path) -> Checkpoint | None:
    name, _, commit = path.name.rpartition(".")
    step = name.rpartition("_")[2]
    if not (commit.isdigit() and step.isdigit()):
        return None
    return Checkpoint(int(step), name, int(commit), root / name, path)
