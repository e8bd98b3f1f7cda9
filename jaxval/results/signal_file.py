"""signals.json: what the trainer reads through jaxval.signals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxval import signals
from jaxval.metrics.significance import LEVEL, p_value
from jaxval.records import SCREENED, Failure, Ranked, SelectBy, Validation


class SignalFile:
    """Tells the trainer the best step, the value of each step, and whether to stop.

    Args:
      output_dir: Where the file is written.
      select_by: Decides which checkpoint is best.
      patience: Number of validations without a significant gain after which to stop, or None
        to never stop. A checkpoint that is screened out counts as one.
      sample: Decides on the sample that screens checkpoints, or None without screening.
    """

    def __init__(
        self,
        output_dir: Path,
        select_by: SelectBy,
        patience: int | None,
        sample: SelectBy | None = None,
    ):
        self._output_dir = output_dir
        self._select_by = select_by
        self._sample = sample
        self._patience = _Patience(select_by, patience)
        self._values: dict[int, float] = {}
        self._failed: set[int] = set()
        self._best: Validation | None = None

    def begin(self, past: Sequence[Ranked], failures: Sequence[Failure]) -> None:
        """Writes what the ledger holds."""
        screened = {
            failure.checkpoint.identity for failure in failures if self._screens_out(failure)
        }
        for ranked in past:
            self._add(ranked)
            validation = ranked.validation
            if self._sample and validation.series == self._sample.series:
                self._patience.idle += validation.checkpoint.identity in screened
        for failure in failures:
            self._add_failure(failure)
        self._write()

    def record(self, ranked: Ranked) -> None:
        """Writes the value of another step."""
        self._add(ranked)
        self._write()

    def fail(self, failure: Failure) -> None:
        """Writes that a step will have no value."""
        self._add_failure(failure)
        self._patience.idle += self._screens_out(failure)
        self._write()

    def end(self) -> None:
        """Does nothing: the file stays as it is."""

    def _add(self, ranked: Ranked) -> None:
        validation = ranked.validation
        if validation.series != self._select_by.series:
            return
        step = validation.checkpoint.step
        self._values[step] = validation.measures[self._select_by.measure]
        self._failed.discard(step)
        self._patience.add(validation)
        if ranked.is_best:
            self._best = validation

    def _add_failure(self, failure: Failure) -> None:
        if failure.series == self._select_by.series:
            self._failed.add(failure.checkpoint.step)

    def _screens_out(self, failure: Failure) -> bool:
        return failure.reason == SCREENED and failure.series == self._select_by.series

    def _write(self) -> None:
        stop = self._patience.exhausted
        reason = f"{self._patience.idle} validations without a significant gain" if stop else ""
        state = signals.State(
            select_by=f"{self._select_by.dataset}:{self._select_by.measure}",
            best=self._best_signal(),
            values=self._values,
            failed=tuple(sorted(self._failed - self._values.keys())),
            stop=stop,
            reason=reason,
            lower_is_better=self._select_by.lower_is_better,
        )
        signals.write(self._output_dir, state)

    def _best_signal(self) -> signals.Best | None:
        if self._best is None:
            return None
        checkpoint = self._best.checkpoint
        value = self._best.measures[self._select_by.measure]
        return signals.Best(checkpoint.step, value, str(checkpoint.path))


class _Patience:
    """Counts the validations since the last significant gain.

    A gain is measured against the validation that made the last gain, not against the best
    so far: several small gains add up to a significant one.

    Args:
      select_by: Decides which of two validations is better.
      limit: Number of validations without a gain at which patience is exhausted, or None.

    Attributes:
      idle: Number of validations since the last gain.
    """

    def __init__(self, select_by: SelectBy, limit: int | None):
        self.idle = 0
        self._select_by = select_by
        self._limit = limit
        self._last_gain: Validation | None = None

    @property
    def exhausted(self) -> bool:
        """Whether training should stop."""
        return self._limit is not None and self.idle >= self._limit

    def add(self, validation: Validation) -> None:
        """Counts a validation."""
        self.idle += 1
        if self._gains(validation):
            self._last_gain, self.idle = validation, 0

    def _gains(self, validation: Validation) -> bool:
        if self._last_gain is None:
            return True
        score, measure = self._select_by.score, self._select_by.measure
        if score(validation) <= score(self._last_gain):
            return False
        before = self._last_gain.per_query[measure]
        return p_value(validation.per_query[measure], before) < LEVEL
