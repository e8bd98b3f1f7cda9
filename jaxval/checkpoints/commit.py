"""The commit rule: which directories are whole checkpoints, and since when.

Imported before JAX, so only the standard library and etils stand here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from etils import epath

from jaxval.records import Checkpoint

COMPLETE = "train_complete"
"""A file of this name in the checkpoint directory says that no checkpoint will follow."""

_STEP = re.compile(r"^(?:.*_)?(\d+)$")
_UNFINISHED = ".orbax-checkpoint-tmp"
_PROOF = "commit_success.txt"
_METADATA = "_CHECKPOINT_METADATA"
_OLD_MARKS = ("_METADATA", "checkpoint")
_MSGPACK = re.compile(rb"([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", re.DOTALL)
"""How a map begins whose first key is a string."""


def committed(root: epath.PathLike) -> list[Checkpoint]:
    """The committed checkpoints in `root`, in step order; none if it does not exist yet."""
    try:
        children = list(epath.Path(root).iterdir())
    except FileNotFoundError:
        return []
    return sorted(found for child in children if (found := read_commit(child)) is not None)


def one_below(root: epath.PathLike) -> epath.Path | None:
    """The first folder in `root` that holds committed checkpoints, if any does."""
    try:
        children = sorted(child for child in epath.Path(root).iterdir() if child.is_dir())
        return next((child for child in children if committed(child)), None)
    except OSError:
        return None


def read_commit(path: epath.Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None if it is not (or not yet, or no longer) one."""
    match = _STEP.match(path.name)
    if match is None or _UNFINISHED in path.name:
        return None
    try:
        time, stamped = _commit_time(path)
    except OSError:
        return None  # deleted while it was looked at, a plain file, or not ours to read
    if time is None:
        return None
    return Checkpoint(int(match[1]), path.name, time, path, stamped=stamped)


def files(path: epath.PathLike) -> list[str]:
    """Every file below `path`, relative to it, sorted; `.` if it is one itself; none if it
    is gone.
    """
    root = epath.Path(path)
    if root.is_file():
        return ["."]
    return sorted(
        str((folder / name).relative_to(root))
        for folder, _, names in root.walk()
        for name in names
    )


def _commit_time(path: epath.Path) -> tuple[int | None, bool]:
    """Nanoseconds since the epoch, and whether the checkpoint's own metadata says so.

    None if the directory is not committed.
    """
    if path.is_file():
        return (_modified(path) if _is_msgpack(path) else None), False
    children = {child.name for child in path.iterdir()}
    stamp = _metadata_stamp(path) if _METADATA in children else None
    if "://" in str(path) and _PROOF not in children:
        return None, False  # on an object store only the success file proves the commit
    if _METADATA in children:
        return stamp, True
    if _PROOF in children:
        return _modified(path / _PROOF), False
    return _old_orbax_time(path, children), False


def _metadata_stamp(path: epath.Path) -> int | None:
    try:
        stamp = json.loads((path / _METADATA).read_text())["commit_timestamp_nsecs"]
    except (ValueError, KeyError, TypeError):
        return None  # still being written
    return stamp if isinstance(stamp, int) else None


def _is_msgpack(path: epath.Path) -> bool:
    """Whether flax.training.checkpoints wrote it before it used Orbax; it renames a file when
    it is whole.
    """
    with path.open("rb") as file:
        head = bytes(file.read(6))
    return bool(_MSGPACK.match(head))


def _old_orbax_time(path: epath.Path, children: Iterable[str]) -> int | None:
    """Orbax before 0.6 wrote no checkpoint metadata: a mark in it, or in a child, will do."""
    folders = [path, *(path / name for name in sorted(children))]
    for mark in (folder / name for folder in folders for name in _OLD_MARKS):
        if mark.is_file():
            return _modified(mark)
    return None


def _modified(path: epath.Path) -> int:
    if "://" in str(path):
        return int(path.stat().mtime * 1e9)
    return Path(path).stat().st_mtime_ns  # epath's own stat knows whole seconds alone
