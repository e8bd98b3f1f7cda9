"""The newest checkpoint, read where the trainer wrote it: no pin is made."""

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
"""The committed checkpoints of a directory, in step order."""


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint.

    Attributes:
      place: the trainer's directory.
      count: how many are committed in it.
      checkpoint: None if there is none.
      restored: None if it could not be read.
      fault: why it could not.
    """

    place: str
    count: int = 0
    checkpoint: Checkpoint | None = None
    restored: Restored | None = None
    fault: JaxvalError | OSError | None = None


def newest(place: str, plan: EvalPlan, listing: Listing = committed) -> Newest:
    """Lists the directory and restores its last step. If the trainer deletes that meanwhile,
    there is a newer one.
    """
    for _ in range(_TRIES):
        there = listing(place)
        if not there:
            return Newest(place)
        found = _restored(Newest(place, len(there), there[-1]), there[-1], plan)
        if not isinstance(found.fault, VanishedError):
            break
    return found


def _restored(found: Newest, checkpoint: Checkpoint, plan: EvalPlan) -> Newest:
    try:
        restored = load(checkpoint, plan)
    except (JaxvalError, OSError) as error:
        return replace(found, fault=error)
    return replace(found, restored=restored)
