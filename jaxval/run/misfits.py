"""Checkpoints that do not fit the encoder, before any checkpoint has fitted.

If one checkpoint fits, the settings are right and the others are wrong: each gets a failure in
the ledger. If none fits, the settings are wrong: the run ends with an error and records
nothing, so that a run with other settings validates them all.
"""

from __future__ import annotations

from jaxval.errors import MismatchError
from jaxval.records import Checkpoint


class Misfits:
    """The mismatches that are not recorded yet.

    Args:
      fitted: Whether a checkpoint has fitted in an earlier run with the same settings.

    Attributes:
      fitted: Whether a checkpoint has fitted.
    """

    def __init__(self, fitted: bool = False):
        self.fitted = fitted
        self._mismatches: list[tuple[Checkpoint, MismatchError]] = []

    def hold(self, checkpoint: Checkpoint, error: MismatchError) -> None:
        """Holds a mismatch back until a checkpoint fits."""
        self._mismatches.append((checkpoint, error))

    def release(self) -> list[tuple[Checkpoint, MismatchError]]:
        """Notes that a checkpoint has fitted, and returns what was held back."""
        self.fitted = True
        released, self._mismatches = self._mismatches, []
        return released

    def raise_last(self) -> None:
        """Raises the last mismatch that is held back, if any.

        Raises:
          MismatchError: No checkpoint has fitted.
        """
        if self._mismatches:
            raise self._mismatches[-1][1]
