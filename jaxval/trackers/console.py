"""The table that grows by a row a checkpoint and set, and the bars while it works."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Sequence
from typing import TextIO

from tqdm import tqdm

from jaxval.records import Bar, Validation

_LOG = logging.getLogger(__name__)
_QUIET_SECONDS = 3.0


class Console:
    """Prints each validation of the current series as a row, with its change against the
    best so far of its set.

    Args:
      series: those of this run; rows of others are not shown.
      measures: the columns; the first decides which checkpoint is best.
      out: where the table goes.
    """

    def __init__(
        self, series: Collection[str], measures: Sequence[str], out: TextIO = sys.stdout
    ):
        self._series = series
        self._measures = measures
        self._out = out
        self._best: dict[str, dict[str, float]] = {}
        self._leaders: dict[str, Validation] = {}
        self._name_width = 0

    def begin(self, past: Sequence[Validation]) -> None:
        """Prints the head, and what this run goes on from."""
        self._print(
            "    step  set          "
            + "".join(f"{name:<18}" for name in self._measures)
            + "passages/s  seconds"
        )
        for validation in past:
            self.record(validation)

    def record(self, validation: Validation) -> None:
        """Prints a row; a star marks a new best."""
        if validation.series not in self._series:
            return
        best = self._best.setdefault(validation.dataset, {})
        means = validation.measures
        leads = self._leads(validation)
        cells = [self._cell(means[name], best.get(name)) for name in self._measures]
        self._print(
            f"{validation.checkpoint.step:>8}{'*' if leads else ' '} {validation.dataset:<13}"
            + "".join(f"{cell:<18}" for cell in cells)
            + f"{validation.rate:>10,.0f}  {sum(validation.seconds.values()):>7.1f}"
        )
        if leads:
            self._leaders[validation.dataset] = validation
        for name in self._measures:
            best[name] = max(best.get(name, float("-inf")), means[name])

    def end(self) -> None:
        """Says which step is best on each set."""
        first = self._measures[0]
        for dataset, leader in self._leaders.items():
            self._print(
                f"best on {dataset}: step {leader.checkpoint.step},"
                f" {first} {leader.measures[first]:.4f}  ({leader.checkpoint.path})"
            )

    def _leads(self, validation: Validation) -> bool:
        leader = self._leaders.get(validation.dataset)
        first = self._measures[0]
        return leader is None or validation.measures[first] > leader.measures[first]

    def _cell(self, value: float, best: float | None) -> str:
        change = "" if best is None else f" {value - best:+.4f}"
        return f"{value:.4f}{change}"

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


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
