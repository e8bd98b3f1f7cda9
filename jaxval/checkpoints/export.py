"""The best checkpoints, kept: their encoder's parameters alone, as Orbax checkpoints.

BEST/<commit_ns>_<name> is what StandardCheckpointer restores on any topology; BEST/best is a
link to the best of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import orbax.checkpoint as ocp

from jaxval.records import Checkpoint, Params

_POINTER = "best"


def export_name(checkpoint: Checkpoint) -> str:
    """Its own, also where a step was saved again: then the worse one has the same step."""
    return f"{checkpoint.commit_ns}_{checkpoint.name}"


class BestCheckpoints:
    """The exports in one directory, which belongs to jaxval alone."""

    def __init__(self, directory: Path):
        self._directory = directory

    def export(self, checkpoint: Checkpoint, params: Params) -> None:
        """Writes a checkpoint's parameters; what a killed run wrote of it is replaced.

        Args:
          checkpoint: gives the name, by `export_name`.
          params: the encoder's tree, in host memory; saved as {"params": tree}.
        """
        with ocp.StandardCheckpointer() as checkpointer:
            target = (self._directory / export_name(checkpoint)).absolute()
            checkpointer.save(target, {"params": params}, force=True)

    def keep(self, names: Collection[str], best: str) -> None:
        """Points to the best export, then removes those that are not named."""
        if (self._directory / best).is_dir():
            link = self._directory / f".{_POINTER}.new"
            link.unlink(missing_ok=True)
            link.symlink_to(best)
            link.replace(self._directory / _POINTER)
        for path in self._directory.glob("*"):
            if path.is_dir() and not path.is_symlink() and path.name not in names:
                shutil.rmtree(path)
