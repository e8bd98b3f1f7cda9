"""The table of results, which grows by one row for each validation, and progress bars."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import rich.console
from rich.table import Table
from tqdm import tqdm

from jaxval.metrics.significance import LEVEL
from jaxval.records import Bar, Failure, Ranked, SelectBy, Validation

_LOG = logging.getLogger(__name__)
_LOG_INTERVAL = 3.0  # seconds
_SIGNIFICANT = "†"
_CELL_WIDTH = len("10.0000 +0.0000†")
_SET_WIDTH = 11
_GAP = 2
_UNLIMITED = 10_000  # columns; a terminal wraps longer lines itself


class Console:
    """Prints each validation as a row, with its change against the best so far on its set.

    Validations and failures of series that do not belong to the run are not printed.

    Args:
      datasets: Digest of each series of the run -> name of its validation set.
      measures: Names of the measures, one for each column.
      select_by: Names the measure that decides which checkpoint is best, and its direction.
      out: Where to print. None prints to stdout.
    """

    def __init__(
        self,
        datasets: Mapping[str, str],
        measures: Sequence[str],
        select_by: SelectBy,
        out: TextIO | None = None,
    ):
        self._datasets = datasets
        self._measures = measures
        self._select_by = select_by
        self._console = rich.console.Console(
            file=out, width=_UNLIMITED, markup=False, highlight=False, emoji=False
        )
        self._has_header = False
        self._best: dict[str, Validation] = {}

    def begin(self, past: Sequence[Ranked], failures: Sequence[Failure]) -> None:
        """Prints the validations that the run continues from."""
        for ranked in past:
            self.record(ranked)

    def record(self, ranked: Ranked) -> None:
        """Prints a row. A star marks a new best."""
        validation = ranked.validation
        if validation.series not in self._datasets:
            return
        if ranked.is_best:
            self._best[validation.series] = validation
        self._print_header()
        self._print_row(
            f"{validation.checkpoint.step:>8}{'*' if ranked.is_best else ' '}",
            validation.dataset,
            *(_cell(ranked, measure) for measure in self._measures),
            f"{validation.rate:,.0f}",
            f"{sum(validation.seconds.values()):.1f}",
        )

    def fail(self, failure: Failure) -> None:
        """Prints why a checkpoint has no value."""
        if failure.series in self._datasets:
            self._print_header()
            self._print(f"{failure.checkpoint.step:>8}  {failure.reason}: {failure.message}")

    def end(self) -> None:
        """Prints which step is best on each set."""
        measure = self._select_by.measure
        for series, best in self._best.items():
            self._print(
                f"best on {self._datasets[series]}: step {best.checkpoint.step}, {measure}"
                f" {best.measures[measure]:.4f}{_interval(best, measure)}"
                f"  ({best.checkpoint.path}{_deleted(best)})"
            )

    def _print_header(self) -> None:
        """Prints the header before the first row, so that a run without rows prints none."""
        if self._has_header:
            return
        self._has_header = True
        direction = " (lower is better)" if self._select_by.lower_is_better else ""
        self._print(
            f"  * best so far by {self._select_by.measure}{direction}; {_SIGNIFICANT}"
            f" significantly different from the best so far (p < {LEVEL})"
        )
        self._print_row(f"{'step':>8} ", "set", *self._measures, "passages/s", "seconds")

    def _print_row(self, *cells: str) -> None:
        """Prints cells in columns whose widths depend on the names of measures and sets."""
        table = Table.grid(padding=(0, _GAP, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(
            no_wrap=True, min_width=max(_SET_WIDTH, *map(len, self._datasets.values()))
        )
        for measure in self._measures:
            table.add_column(no_wrap=True, min_width=max(_CELL_WIDTH, len(measure)))
        table.add_column(no_wrap=True, justify="right", min_width=len("passages/s"))
        table.add_column(no_wrap=True, justify="right", min_width=len("seconds"))
        table.add_row(*cells)
        self._console.print(table)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def _cell(ranked: Ranked, measure: str) -> str:
    """Returns a value and its change against the best before it, marked if significant."""
    value, best = ranked.validation.measures[measure], ranked.best_before
    if best is None:
        return f"{value:.4f}"
    standing = ranked.validation.standing
    p_value = standing.p_values.get(measure, 1.0) if standing else 1.0
    mark = _SIGNIFICANT if p_value < LEVEL else ""
    return f"{value:.4f} {value - best.measures[measure]:+.4f}{mark}"


def _deleted(validation: Validation) -> str:
    path = str(validation.checkpoint.path)
    exists = "://" in path or Path(path).exists()
    return "" if exists else ", deleted by its trainer; see `keep_best`"


def _interval(validation: Validation, measure: str) -> str:
    if validation.standing is None:
        return ""
    low, high = validation.standing.intervals[measure]
    return f" [{low:.4f}, {high:.4f}]"


def progress(label: str, total: int | None) -> Bar:
    """Returns a progress bar on a terminal; elsewhere one that logs every few seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=label, leave=False, unit_scale=True, dynamic_ncols=True)  # type: ignore[no-any-return]
    return _LogBar(label, total)


class _LogBar:
    """Logs progress every few seconds, and nothing if the work takes less."""

    def __init__(self, label: str, total: int | None):
        self._label = label
        self._total = total
        self._done = 0
        self._start = self._last_logged = time.monotonic()

    def __enter__(self) -> _LogBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._last_logged >= _LOG_INTERVAL:
            self._last_logged = now
            of_total = f" of {self._total:,}" if self._total else ""
            rate = self._done / (now - self._start)
            _LOG.info("%s: %s%s, %.0f/s", self._label, f"{self._done:,}", of_total, rate)
