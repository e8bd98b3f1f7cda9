"""The newest checkpoint, read from the trainer's directory without a pin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.restore import Restored
from jaxval.errors import JaxvalError, VanishedError
from jaxval.evaluation.plan import EvalPlan
from jaxval.evaluation.validate import load
from jaxval.records import Checkpoint

_TRIES = 3

Listing = Callable[[str], Sequence[Checkpoint]]
"""Returns the committed checkpoints of a directory, in step order."""


@dataclass(frozen=True)
class NewestCheckpoint:
    """The newest checkpoint of a directory, and its parameters.

    Attributes:
      directory: The trainer's directory.
      count: Number of committed checkpoints in it.
      checkpoint: The newest one; None if there is none.
      restored: Its parameters in host memory; None if they could not be read.
      error: Why they could not be read; None if they were.
    """

    directory: str
    count: int = 0
    checkpoint: Checkpoint | None = None
    restored: Restored | None = None
    error: JaxvalError | OSError | None = None


def find_newest(
    directory: str, plan: EvalPlan, listing: Listing = committed
) -> NewestCheckpoint:
    """Lists a directory and restores its last checkpoint.

    If the trainer deletes the checkpoint before it is read, lists the directory again.

    Args:
      directory: The trainer's directory.
      plan: The parameters that the encoder needs.
      listing: Lists the directory.
    """
    for _ in range(_TRIES):
        checkpoints = listing(directory)
        if not checkpoints:
            return NewestCheckpoint(directory)
        newest = _restore(
            NewestCheckpoint(directory, len(checkpoints), checkpoints[-1]),
            checkpoints[-1],
            plan,
        )
        if not isinstance(newest.error, VanishedError):
            break
    return newest


def _restore(
    newest: NewestCheckpoint, checkpoint: Checkpoint, plan: EvalPlan
) -> NewestCheckpoint:
    try:
        restored = load(checkpoint, plan)
    except (JaxvalError, OSError) as error:
        return replace(newest, error=error)
    return replace(newest, restored=restored)
