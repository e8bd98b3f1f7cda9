"""signals.json: what the trainer hears, by jaxval.signals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxval import signals
from jaxval.metrics.significance import LEVEL, p_value
from jaxval.records import SCREENED, Failure, SelectBy, Validation


class SignalFile:
    """Tells the trainer the best step, what is validated, and whether to stop.

    Args:
      output_dir: where the file lies.
      select_by: what decides.
      patience: validations without a significant gain after which to stop; None for never.
        Whoever is screened out has made none.
      sample: what screens, if anything does.
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
        self._patience = patience
        self._sample = sample
        self._values: dict[int, float] = {}
        self._failed: set[int] = set()
        self._leader: Validation | None = None
        self._anchor: Validation | None = None
        self._idle = 0

    def begin(self, past: Sequence[Validation], failures: Sequence[Failure]) -> None:
        """Tells what the ledger holds."""
        screened = {one.checkpoint.identity for one in failures if self._is_screened(one)}
        for validation in past:
            self._take(validation)
            if self._sample and validation.series == self._sample.series:
                self._idle += validation.checkpoint.identity in screened
        for failure in failures:
            self._take_failure(failure)
        self._write()

    def record(self, validation: Validation) -> None:
        """Tells one more value."""
        self._take(validation)
        self._write()

    def fail(self, failure: Failure) -> None:
        """Tells that a step will have no value."""
        self._take_failure(failure)
        self._idle += self._is_screened(failure)
        self._write()

    def end(self) -> None:
        """The file stays as it is."""

    def _take(self, validation: Validation) -> None:
        if validation.series != self._select_by.series:
            return
        step = validation.checkpoint.step
        self._wait(validation)
        self._values[step] = validation.measures[self._select_by.measure]
        self._failed.discard(step)
        if self._gains(validation, self._leader):
            self._leader = validation

    def _gains(self, validation: Validation, other: Validation | None) -> bool:
        worth = self._select_by.worth
        return other is None or worth(validation) > worth(other)

    def _wait(self, validation: Validation) -> None:
        """Counts validations since the last significant gain, over the one that made it:
        small steps upwards add up to a gain."""
        self._idle += 1
        if self._gains(validation, self._anchor) and self._surely(validation):
            self._anchor, self._idle = validation, 0

    def _surely(self, validation: Validation) -> bool:
        if self._anchor is None:
            return True
        measure = self._select_by.measure
        return p_value(validation.per_query[measure], self._anchor.per_query[measure]) < LEVEL

    def _take_failure(self, failure: Failure) -> None:
        if failure.series == self._select_by.series:
            self._failed.add(failure.checkpoint.step)

    def _is_screened(self, failure: Failure) -> bool:
        return failure.reason == SCREENED and failure.series == self._select_by.series

    def _write(self) -> None:
        stop = self._patience is not None and self._idle >= self._patience
        reason = f"{self._idle} validations without a significant gain" if stop else ""
        state = signals.State(
            select_by=f"{self._select_by.dataset}:{self._select_by.measure}",
            best=self._best(),
            values=self._values,
            failed=tuple(sorted(self._failed - self._values.keys())),
            stop=stop,
            reason=reason,
            lower_is_better=self._select_by.lower_is_better,
        )
        signals.write(self._output_dir, state)

    def _best(self) -> signals.Best | None:
        if self._leader is None:
            return None
        checkpoint = self._leader.checkpoint
        value = self._leader.measures[self._select_by.measure]
        return signals.Best(checkpoint.step, value, str(checkpoint.path))
