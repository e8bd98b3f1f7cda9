"""Screening: checkpoints that are significantly worse on a sample skip the whole corpus.

A checkpoint that is screened out gets a failure in the series of the whole corpus, in the
transaction that writes its result on the sample. So even after a kill, the ledger determines
what to do with each checkpoint: one with a row of the sample and none of the whole corpus is
still to be confirmed. One with a failure, but without a row of this sample, was screened out
by another sample; such a failure is removed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxval.metrics.significance import LEVEL
from jaxval.records import SCREENED, Checkpoint, Failure, SelectBy, Validation

Scores = Mapping[Checkpoint, float]
"""Checkpoint -> its mean of the measure that decides."""

_LISTED = 5


@dataclass(frozen=True)
class Screening:
    """A sample that screens checkpoints, and the whole corpus that confirms them.

    Attributes:
      sample: The measure that decides, on the sample.
      whole: The same measure, on the whole corpus.
    """

    sample: SelectBy
    whole: SelectBy

    def verdict(self, candidate: Validation, best: Validation | None) -> Failure | None:
        """Decides whether a checkpoint is screened out.

        Args:
          candidate: Its validation on the sample, compared with `best`.
          best: The best validation on the sample before it; None if there is none.

        Returns:
          The failure that records why it is screened out; None if it is to be confirmed.
        """
        if best is None or candidate.standing is None:
            return None
        measure = self.sample.measure
        p_value = candidate.standing.p_values[measure]
        if self.sample.score(candidate) >= self.sample.score(best) or p_value >= LEVEL:
            return None
        message = (
            f"{measure} on {self.sample.dataset} is {candidate.measures[measure]:.4f},"
            f" significantly worse than {best.measures[measure]:.4f} of step"
            f" {best.checkpoint.step} (p = {p_value:.2g}): not validated on"
            f" {self.whole.dataset}"
        )
        return Failure(candidate.checkpoint, self.whole.series, SCREENED, message)

    def saved(self, validations: Sequence[Validation], failures: Sequence[Failure]) -> str:
        """Returns a line about the time that screening saved.

        The time saved is the number of screened-out checkpoints, times the median time of a
        confirmed one on the whole corpus.

        Args:
          validations: All validations in the ledger.
          failures: All failures in the ledger.
        """
        sampled = [_seconds(row) for row in validations if row.series == self.sample.series]
        whole = [_seconds(row) for row in validations if row.series == self.whole.series]
        screened = sum(map(self._is_screened, failures))
        line = (
            f"confirmed {len(whole)} of {len(whole) + screened} checkpoints on"
            f" {self.whole.dataset}; {screened} screened out"
        )
        if not (whole and screened):
            return line
        saved = _duration(screened * statistics.median(whole))
        return (
            f"{line}, which saved about {saved}; {self.sample.dataset} took"
            f" {_duration(sum(sampled))} in total"
        )

    def estimated(self, validations: Sequence[Validation], failures: Sequence[Failure]) -> str:
        """Returns a line that estimates the scores of screened-out checkpoints on the whole.

        Scores on a sample are too high. The excess is about the same for all checkpoints if a
        ranking similar to theirs drew the sample (benchmarks/fidelity). So the estimate is the
        score on the sample, minus the excess of the confirmed checkpoint with the nearest
        step. The line also gives the error of the same estimate for confirmed checkpoints.

        Args:
          validations: All validations in the ledger.
          failures: All failures in the ledger.

        Returns:
          The line; empty if no checkpoint was screened out, or fewer than two were confirmed.
        """
        sampled, whole = self._scores(validations)
        excess = {
            checkpoint: sampled[checkpoint] - whole[checkpoint]
            for checkpoint in sorted(sampled.keys() & whole)
        }
        screened = [row.checkpoint for row in failures if self._is_screened(row)]
        if len(excess) < 2 or not sampled.keys() & screened:
            return ""
        errors = [
            abs(excess[checkpoint] - _of_nearest(excess, checkpoint)) for checkpoint in excess
        ]
        estimates = {
            checkpoint: sampled[checkpoint] - _of_nearest(excess, checkpoint)
            for checkpoint in sorted(sampled.keys() & screened)
        }
        return (
            f"estimated {self.whole.measure} of screened-out checkpoints on"
            f" {self.whole.dataset}: {self._list_best(estimates)} (for confirmed checkpoints"
            f" the error is {statistics.mean(errors):.4f} on average and {max(errors):.4f} at"
            " most)"
        )

    def _list_best(self, estimates: Scores) -> str:
        sign = 1 if self.whole.lower_is_better else -1
        order = sorted(estimates, key=lambda checkpoint: sign * estimates[checkpoint])
        listed = ", ".join(
            f"step {checkpoint.step} {estimates[checkpoint]:.4f}"
            for checkpoint in order[:_LISTED]
        )
        return f"{listed}, …" if len(order) > _LISTED else listed

    def _is_screened(self, failure: Failure) -> bool:
        return failure.reason == SCREENED and failure.series == self.whole.series

    def _scores(self, validations: Sequence[Validation]) -> tuple[Scores, Scores]:
        """Returns the scores on the sample, and those on the whole corpus."""
        sampled, whole = (
            {
                row.checkpoint: row.measures[by.measure]
                for row in validations
                if row.series == by.series
            }
            for by in (self.sample, self.whole)
        )
        return sampled, whole


def _of_nearest(values: Scores, checkpoint: Checkpoint) -> float:
    """Returns the value of the other checkpoint with the nearest step, the earlier of two."""
    others = (other for other in values if other != checkpoint)
    return values[min(others, key=lambda other: (abs(other.step - checkpoint.step), other))]


def _seconds(validation: Validation) -> float:
    """Returns the seconds without `restore`, which sample and whole corpus share."""
    return sum(seconds for stage, seconds in validation.seconds.items() if stage != "restore")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
