"""The end of a run: its counts, where its results are, and what was missing."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from etils import epath

from jaxval.checkpoints.commit import folder_with_checkpoints
from jaxval.config import Output
from jaxval.errors import UserError
from jaxval.metrics.screening import Screening
from jaxval.results.ledger import Ledger

_LOG = logging.getLogger(__name__)


@dataclass
class Tally:
    """How many checkpoints of this run had which outcome.

    Attributes:
      validated: Validated on every set.
      known: Skipped because the ledger has a row of them in each series.
      known_failed: Those of `known` that failed in an earlier run.
      lost: Deleted by the trainer before they could be read.
      corrupt: Damaged, not finite, or of another structure than the encoder.
      unreadable: Not readable because of the file system.
      skipped: Skipped because a newer one was waiting (`order=latest`).
      screened: Not evaluated on the whole corpus because of their result on the sample.
      retried: Number of reads that were retried.
    """

    validated: int = 0
    known: int = 0
    known_failed: int = 0
    lost: int = 0
    corrupt: int = 0
    unreadable: int = 0
    skipped: int = 0
    screened: int = 0
    retried: int = 0

    def count(self, reason: str) -> None:
        """Counts a failure by its reason."""
        if reason in ("vanished", "unseen"):
            self.lost += 1
        elif reason == "skipped":
            self.skipped += 1
        else:
            self.corrupt += 1

    @property
    def status(self) -> int:
        """Exit status of the run."""
        return 1 if self.corrupt or self.unreadable else 0

    def __str__(self) -> str:
        failed = f" ({self.known_failed} failed; `retry_failed` validates them again)"
        known = f"{self.known} already in the ledger" + failed * bool(self.known_failed)
        parts = [f"{self.validated} validated", known]
        parts += [f"{self.lost} lost", f"{self.corrupt} corrupt", f"{self.retried} retried"]
        parts += [f"{self.skipped} skipped"] * bool(self.skipped)
        parts += [f"{self.screened} screened out"] * bool(self.screened)
        parts += [f"{self.unreadable} unreadable"] * bool(self.unreadable)
        return ", ".join(parts)


def print_summary(
    output: Output, tally: Tally, ledger: Ledger, screening: Screening | None
) -> None:
    """Prints the counts, what screening saved, and where the results are."""
    if screening:
        rows = ledger.validations(), ledger.failures()
        lines = screening.saved(*rows), screening.estimated(*rows)
        print(*filter(None, lines), sep="\n")
    directory = output.directory
    print(tally)
    print(f"ledger       {directory / 'ledger.sqlite'}")
    print(f"metrics      {directory / 'metrics.jsonl'}")
    if output.write_run:
        print(f"runs         {directory / 'runs'}")
    if output.keep_best:
        print(f"best         {directory / 'best' / 'best'}")
    print(f"TensorBoard  tensorboard --logdir {directory / 'tensorboard'}", flush=True)


def explain_no_checkpoint(checkpoint_dir: str) -> None:
    """Logs a likely reason why a directory has no checkpoint.

    Raises:
      UserError: The directory does not exist.
    """
    if not epath.Path(checkpoint_dir).exists():
        raise UserError(
            f"`checkpoint_dir={checkpoint_dir}` does not exist: name the directory that the"
            " trainer saves to, or wait longer with `idle_timeout`"
        )
    below = folder_with_checkpoints(checkpoint_dir)
    hint = f"did you mean {below}?" if below else "is it where the trainer saves?"
    _LOG.warning("found no checkpoint in %s: %s", checkpoint_dir, hint)
