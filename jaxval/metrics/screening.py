"""Screen, then confirm: who is surely worse on the sample is not put to the whole corpus.

A checkpoint that is screened out gets a failure in the whole corpus's series, in the
transaction of its sampled result. So after any kill the ledger alone says what is still to be
confirmed: what has a row of the sample and none of the whole; and what another sample screened
out: what has its failure and no row of this sample. Such a failure does not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxval.metrics.significance import LEVEL
from jaxval.records import SCREENED, Checkpoint, Failure, SelectBy, Validation

Scores = Mapping[Checkpoint, float]

_LISTED = 5


@dataclass(frozen=True)
class Screening:
    """The sample that screens and the whole corpus that confirms, by the same measure."""

    sample: SelectBy
    whole: SelectBy

    def verdict(self, candidate: Validation, best: Validation | None) -> Failure | None:
        """The row that says it is screened out; None if it is to be confirmed.

        Args:
          candidate: on the sample; its standing is that against `best`.
          best: on the sample, of those before it.
        """
        if best is None or candidate.standing is None:
            return None
        luck = candidate.standing.p_values[self.sample.measure]
        if self.sample.worth(candidate) >= self.sample.worth(best) or luck >= LEVEL:
            return None
        value, other = (one.measures[self.sample.measure] for one in (candidate, best))
        message = (
            f"on {self.sample.dataset} its {self.sample.measure} of {value:.4f} is"
            f" significantly worse than step {best.checkpoint.step}'s {other:.4f}"
            f" (p = {luck:.2g}): not put to {self.whole.dataset}"
        )
        return Failure(candidate.checkpoint, self.whole.series, SCREENED, message)

    def saved(self, validations: Sequence[Validation], failures: Sequence[Failure]) -> str:
        """One line about what the ledger holds: how many were confirmed, and the time that
        the others would have taken, had each been a typical one of the confirmed.
        """
        sampled = [_seconds(one) for one in validations if one.series == self.sample.series]
        whole = [_seconds(one) for one in validations if one.series == self.whole.series]
        out = sum(map(self._screened_out, failures))
        said = (
            f"confirmed {len(whole)} of {len(whole) + out} checkpoints on {self.whole.dataset}"
        )
        if not (whole and out):
            return f"{said}; {out} screened out"
        saved = _duration(out * statistics.median(whole))
        return (
            f"{said}; {out} screened out saved about {saved}, {self.sample.dataset} took"
            f" {_duration(sum(sampled))} in all"
        )

    def estimated(self, validations: Sequence[Validation], failures: Sequence[Failure]) -> str:
        """One line about what those screened out would have scored on the whole; empty if none
        was, or fewer than two were confirmed.

        What the sample says too much is much the same from one checkpoint to the next, if it
        was drawn by a ranking like theirs (benchmarks/fidelity): what it says too much of the
        nearest confirmed one, by step, is taken off. How far off that would have been for each
        of the confirmed, by its nearest, is said beside it.
        """
        sampled, whole = self._scores(validations)
        excess = {one: sampled[one] - whole[one] for one in sorted(sampled.keys() & whole)}
        out = [one.checkpoint for one in failures if self._screened_out(one)]
        if len(excess) < 2 or not sampled.keys() & out:
            return ""
        wrong = [abs(excess[one] - _of_nearest(excess, one)) for one in excess]
        guessed = {
            one: sampled[one] - _of_nearest(excess, one) for one in sorted(sampled.keys() & out)
        }
        return (
            f"estimated {self.whole.measure} of these on {self.whole.dataset}:"
            f" {self._best(guessed)} (the same for those confirmed is off by"
            f" {statistics.mean(wrong):.4f} in the mean, {max(wrong):.4f} at most)"
        )

    def _best(self, guessed: Scores) -> str:
        sign = 1 if self.whole.lower_is_better else -1
        order = sorted(guessed, key=lambda one: sign * guessed[one])
        listed = ", ".join(f"step {one.step} {guessed[one]:.4f}" for one in order[:_LISTED])
        return f"{listed}, …" if len(order) > _LISTED else listed

    def _screened_out(self, failure: Failure) -> bool:
        return failure.reason == SCREENED and failure.series == self.whole.series

    def _scores(self, validations: Sequence[Validation]) -> tuple[Scores, Scores]:
        """What each checkpoint scored on the sample, and on the whole."""
        sampled, whole = (
            {
                one.checkpoint: one.measures[by.measure]
                for one in validations
                if one.series == by.series
            }
            for by in (self.sample, self.whole)
        )
        return sampled, whole


def _of_nearest(values: Scores, checkpoint: Checkpoint) -> float:
    """The value of the nearest other one by step, of two the earlier."""
    others = (one for one in values if one != checkpoint)
    return values[min(others, key=lambda one: (abs(one.step - checkpoint.step), one))]


def _seconds(validation: Validation) -> float:
    """Without reading the checkpoint, which is done once for both."""
    return sum(spent for stage, spent in validation.seconds.items() if stage != "restore")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
