"""The table that grows by a row a checkpoint and set, and the bars while it works."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from jaxval.metrics.significance import LEVEL
from jaxval.records import Bar, Failure, SelectBy, Validation

_LOG = logging.getLogger(__name__)
_QUIET_SECONDS = 3.0
_SIGNIFICANT = "†"


class Console:
    """Prints each validation of the current series as a row, with its change against the
    best so far of its set.

    Args:
      series: those of this run; rows of others are not shown.
      measures: the columns.
      select_by: its measure decides which checkpoint is best, on each set.
      out: where the table goes.
    """

    def __init__(
        self,
        series: Collection[str],
        measures: Sequence[str],
        select_by: SelectBy,
        out: TextIO = sys.stdout,
    ):
        self._series = series
        self._measures = measures
        self._worth = select_by.worth
        self._decisive = select_by.measure
        self._direction = " (lower is better)" if select_by.lower_is_better else ""
        self._out = out
        self._headed = False
        self._leaders: dict[str, Validation] = {}

    def begin(self, past: Sequence[Validation], failures: Sequence[Failure]) -> None:
        """Prints what this run goes on from."""
        for validation in past:
            self.record(validation)

    def record(self, validation: Validation) -> None:
        """Prints a row; a star marks a new best."""
        if validation.series not in self._series:
            return
        leader = self._leaders.get(validation.dataset)
        leads = leader is None or self._worth(validation) > self._worth(leader)
        cells = [_cell(validation, leader, name) for name in self._measures]
        self._row(
            f"{validation.checkpoint.step:>8}{'*' if leads else ' '} {validation.dataset:<13}"
            + "".join(f"{cell:<17} " for cell in cells)
            + f"{validation.rate:>10,.0f}  {sum(validation.seconds.values()):>7.1f}"
        )
        if leads:
            self._leaders[validation.dataset] = validation

    def fail(self, failure: Failure) -> None:
        """Prints a row that says why there is no value."""
        if failure.series in self._series:
            self._row(f"{failure.checkpoint.step:>8}  {failure.reason}: {failure.message}")

    def end(self) -> None:
        """Says which step is best on each set."""
        for dataset, leader in self._leaders.items():
            self._print(
                f"best on {dataset}: step {leader.checkpoint.step}, {self._decisive}"
                f" {leader.measures[self._decisive]:.4f}{_within(leader, self._decisive)}"
                f"  ({leader.checkpoint.path}{_gone(leader)})"
            )

    def _row(self, line: str) -> None:
        """Prints it below the head, which comes with the first: a run may end without one."""
        if not self._headed:
            self._headed = True
            self._print(
                f"  * best so far by {self._decisive}{self._direction}; {_SIGNIFICANT}"
                f" significantly different from the best so far (p < {LEVEL})"
            )
            self._print(
                "    step  set          "
                + "".join(f"{name:<18}" for name in self._measures)
                + "passages/s  seconds"
            )
        self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _cell(validation: Validation, leader: Validation | None, name: str) -> str:
    value = validation.measures[name]
    if leader is None:
        return f"{value:.4f}"
    standing = validation.standing
    luck = standing.p_values.get(name, 1.0) if standing else 1.0
    mark = _SIGNIFICANT if luck < LEVEL else ""
    return f"{value:.4f} {value - leader.measures[name]:+.4f}{mark}"


def _gone(validation: Validation) -> str:
    path = str(validation.checkpoint.path)
    there = "://" in path or Path(path).exists()
    return "" if there else ", deleted by its trainer; see --keep_best"


def _within(validation: Validation, name: str) -> str:
    if validation.standing is None:
        return ""
    low, high = validation.standing.intervals[name]
    return f" [{low:.4f}, {high:.4f}]"


def progress(label: str, total: int | None) -> Bar:
    """A bar on a terminal; elsewhere a line of log every few seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=label, leave=False, unit_scale=True, dynamic_ncols=True)  # type: ignore[no-any-return]
    return _Lines(label, total)


class _Lines:
    """Progress as lines of log, none for work that is over at once."""

    def __init__(self, label: str, total: int | None):
        self._label = label
        self._total = total
        self._done = 0
        self._start = self._said = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._said >= _QUIET_SECONDS:
            self._said = now
            of = f" of {self._total:,}" if self._total else ""
            rate = self._done / (now - self._start)
            _LOG.info("%s: %s%s, %.0f/s", self._label, f"{self._done:,}", of, rate)
