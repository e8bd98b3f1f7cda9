"""The commit rule: which directories are complete checkpoints, and their commit times.

The watcher imports this module before JAX, so it imports only the standard library and etils.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from etils import epath

from jaxval.records import Checkpoint

COMPLETE = "train_complete"
"""The file in the checkpoint directory that a trainer writes after its last checkpoint."""

_STEP = re.compile(r"^(?:.*_)?(\d+)$")
_TEMPORARY = ".orbax-checkpoint-tmp"
_SUCCESS = "commit_success.txt"
_METADATA = "_CHECKPOINT_METADATA"
_OLD_METADATA = ("_METADATA", "checkpoint")
_MSGPACK = re.compile(rb"([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", re.DOTALL)
"""The first bytes of a msgpack map whose first key is a string."""


def committed(root: epath.PathLike) -> list[Checkpoint]:
    """Returns the committed checkpoints in `root` in step order, or none if it is missing."""
    try:
        children = list(epath.Path(root).iterdir())
    except FileNotFoundError:
        return []
    return sorted(
        checkpoint for child in children if (checkpoint := read_commit(child)) is not None
    )


def folder_with_checkpoints(root: epath.PathLike) -> epath.Path | None:
    """Returns the first folder in `root` that contains committed checkpoints, or None."""
    try:
        children = sorted(child for child in epath.Path(root).iterdir() if child.is_dir())
        return next((child for child in children if committed(child)), None)
    except OSError:
        return None


def read_commit(path: epath.Path) -> Checkpoint | None:
    """Returns the committed checkpoint at `path`, or None if there is none."""
    match = _STEP.match(path.name)
    if match is None or _TEMPORARY in path.name:
        return None
    try:
        time, stamped = _commit_time(path)
    except OSError:
        return None  # deleted in the meantime, or not readable
    if time is None:
        return None
    return Checkpoint(int(match[1]), path.name, time, path, stamped=stamped)


def files(path: epath.PathLike) -> list[str]:
    """Returns the sorted paths of all files below `path`, relative to it.

    If `path` is itself a file, the only entry is `.`; if it does not exist, there is none.
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
    """Returns the commit time, and whether it comes from the checkpoint's own metadata.

    The time is in nanoseconds since the epoch, or None if the checkpoint is not committed.
    """
    if path.is_file():
        return (_modified(path) if _is_msgpack(path) else None), False
    children = {child.name for child in path.iterdir()}
    stamp = _metadata_stamp(path) if _METADATA in children else None
    if "://" in str(path) and _SUCCESS not in children:
        return None, False  # on an object store only the success file proves the commit
    if _METADATA in children:
        return stamp, True
    if _SUCCESS in children:
        return _modified(path / _SUCCESS), False
    return _old_orbax_time(path, children), False


def _metadata_stamp(path: epath.Path) -> int | None:
    try:
        stamp = json.loads((path / _METADATA).read_text())["commit_timestamp_nsecs"]
    except (ValueError, KeyError, TypeError):
        return None  # not written completely yet
    return stamp if isinstance(stamp, int) else None


def _is_msgpack(path: epath.Path) -> bool:
    """Returns whether a file was written by flax.training.checkpoints without Orbax.

    Such a file gets its name when it is complete.
    """
    with path.open("rb") as file:
        head = bytes(file.read(6))
    return bool(_MSGPACK.match(head))


def _old_orbax_time(path: epath.Path, children: Iterable[str]) -> int | None:
    """Returns the commit time of a checkpoint written by Orbax before 0.6, or None.

    These have no checkpoint metadata, but a metadata file in the directory or in a child.
    """
    folders = [path, *(path / name for name in sorted(children))]
    for file in (folder / name for folder in folders for name in _OLD_METADATA):
        if file.is_file():
            return _modified(file)
    return None


def _modified(path: epath.Path) -> int:
    if "://" in str(path):
        return int(path.stat().mtime * 1e9)
    return Path(path).stat().st_mtime_ns  # epath's stat has a resolution of one second
