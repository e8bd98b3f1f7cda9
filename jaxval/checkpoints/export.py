"""Exports of the best checkpoints: the encoder's parameters as Orbax checkpoints.

DIRECTORY/<commit_ns>_<name> can be restored by StandardCheckpointer on any topology.
DIRECTORY/best is a symbolic link to the best export.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import orbax.checkpoint as ocp

from jaxval.records import Checkpoint, Params

_POINTER = "best"


def export_name(checkpoint: Checkpoint) -> str:
    """Returns the name of a checkpoint's export, which differs if a step is saved again."""
    return f"{checkpoint.commit_ns}_{checkpoint.name}"


class BestCheckpoints:
    """The exports in one directory, which only jaxval writes to.

    Args:
      directory: Where the exports are; created by the first export.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    def export(self, checkpoint: Checkpoint, params: Params) -> None:
        """Writes a checkpoint's parameters, replacing an earlier export of it.

        Args:
          checkpoint: The checkpoint; the export is named by `export_name`.
          params: The encoder's tree in host memory; it is saved as {"params": tree}.
        """
        with ocp.StandardCheckpointer() as checkpointer:
            target = (self._directory / export_name(checkpoint)).absolute()
            checkpointer.save(target, {"params": params}, force=True)

    def keep(self, names: Collection[str], best: str) -> None:
        """Links the best export, then removes all exports that are not to be kept.

        Args:
          names: The exports to keep.
          best: The export that the link points to; if it does not exist, the link stays.
        """
        if (self._directory / best).is_dir():
            link = self._directory / f".{_POINTER}.new"
            link.unlink(missing_ok=True)
            link.symlink_to(best)
            link.replace(self._directory / _POINTER)
        for path in self._directory.glob("*"):
            if path.is_dir() and not path.is_symlink() and path.name not in names:
                shutil.rmtree(path)
