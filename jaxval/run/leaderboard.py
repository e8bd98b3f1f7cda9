"""Decides which checkpoint is best, in each series."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxval.checkpoints.export import BestCheckpoints, export_name
from jaxval.metrics.significance import compare
from jaxval.records import Params, Ranked, SelectBy, Standing, Validation


class Leaderboard:
    """The best validations of each series.

    Of equal validations the earlier one is better.

    Args:
      select_by: Its measure and direction order the validations of every series.
      size: Number of validations to keep for each series, at least 1.
    """

    def __init__(self, select_by: SelectBy, size: int = 1):
        self._select_by = select_by
        self._size = max(1, size)
        self._ranking: dict[str, list[Validation]] = {}

    def top(self, series: str) -> Sequence[Validation]:
        """Returns the best validations of a series so far, the best one first."""
        return self._ranking.get(series, [])

    def best(self, series: str) -> Validation | None:
        """Returns the best validation of a series so far, or None if there is none."""
        return next(iter(self.top(series)), None)

    def compared(self, validation: Validation) -> Validation:
        """Returns the validation with its standing against the best of its series so far."""
        best = self.best(validation.series)
        comparison = compare(validation.per_query, best.per_query if best else None)
        against = best.checkpoint.step if best else None
        standing = Standing(comparison.intervals, against, comparison.p_values)
        return dataclasses.replace(validation, standing=standing)

    def place(self, validation: Validation) -> int:
        """Returns the place, from 0, that a new validation would take in its series."""
        score = self._select_by.score
        top = self.top(validation.series)
        return sum(not score(validation) > score(other) for other in top)

    def add(self, validation: Validation) -> Ranked:
        """Adds a validation to its series.

        A validation of an earlier series without the measure is not ranked.
        """
        if self._select_by.measure not in validation.per_query:
            return Ranked(validation, best_before=None, is_best=False)
        best, place = self.best(validation.series), self.place(validation)
        ranking = self._ranking.setdefault(validation.series, [])
        ranking.insert(place, validation)
        del ranking[self._size :]
        return Ranked(validation, best_before=best, is_best=place == 0)


class BestExports:
    """Exports of the best checkpoints of the series that decides.

    Args:
      leaderboard: Decides which are best.
      series: Digest of the series.
      exports: Where they are written.
      count: Number of checkpoints to keep, 0 for none.
    """

    def __init__(
        self, leaderboard: Leaderboard, series: str, exports: BestCheckpoints, count: int
    ):
        self._leaderboard = leaderboard
        self._series = series
        self._exports = exports
        self._count = count

    def export(self, validation: Validation, params: Params) -> None:
        """Exports the parameters if the validation is among the best.

        Call it before the validation is committed and added to the leaderboard, so that each
        committed result has its export.
        """
        decides = validation.series == self._series
        if decides and self._leaderboard.place(validation) < self._count:
            self._exports.export(validation.checkpoint, params)

    def prune(self) -> None:
        """Links to the best export and removes those that are no longer among the best."""
        names = [export_name(best.checkpoint) for best in self._leaderboard.top(self._series)]
        if self._count and names:
            self._exports.keep(names, best=names[0])
