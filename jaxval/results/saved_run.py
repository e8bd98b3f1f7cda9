"""A run's results for notebooks and scripts, read-only, also while jaxval writes them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxval import signals
from jaxval.errors import UserError
from jaxval.results.reader import LedgerReader, Row
from jaxval.results.result import Result

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Difference:
    """How two checkpoints differ in one measure.

    Attributes:
      first: The mean of the first checkpoint.
      second: The mean of the second checkpoint.
      difference: `second - first`.
      p_value: The two-sided p-value of a paired randomization test over the queries.
    """

    first: float
    second: float
    difference: float
    p_value: float


@dataclass(frozen=True)
class QueryChange:
    """One query's values of a measure in two checkpoints.

    Attributes:
      query_id: The id of the query.
      first: The value of the first checkpoint.
      second: The value of the second checkpoint.
    """

    query_id: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """`second - first`."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints on one validation set.

    Attributes:
      dataset: The name of the validation set.
      steps: The steps of the first and the second checkpoint.
      measures: Measure -> difference.
      changes: Measure -> the queries whose value differs, from the greatest loss to the
        greatest gain of the second checkpoint.
    """

    dataset: str
    steps: tuple[int, int]
    measures: Mapping[str, Difference]
    changes: Mapping[str, tuple[QueryChange, ...]]


def open_run(output_dir: str | os.PathLike[str]) -> SavedRun:
    """Opens the results of a run, read-only.

    No lock is taken and nothing is written, so a run can write at the same time. Every method
    reads the ledger again.

    Args:
      output_dir: The run's output directory.

    Raises:
      UserError: There is no ledger in it, or it cannot be read.
    """
    return SavedRun(output_dir)


class SavedRun:
    """The results of a run. Where data or settings changed, those of the latest series.

    Args:
      output_dir: The run's output directory.

    Raises:
      UserError: There is no ledger in it, or it cannot be read.
    """

    def __init__(self, output_dir: str | os.PathLike[str]):
        self._directory = Path(output_dir).expanduser()
        self._ledger = LedgerReader(self._directory / "ledger.sqlite")
        self._ledger.rows()  # fails here where it cannot be read

    def __repr__(self) -> str:
        return f"SavedRun({str(self._directory)!r})"

    @property
    def results(self) -> list[Result]:
        """All results, in the order they were recorded, without per-query values."""
        return [row.result for row in self._rows()]

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The checkpoints without a result, each with step, reason and message."""
        return self._ledger.failures()

    @property
    def datasets(self) -> list[str]:
        """The names of the validation sets that have results."""
        return list(dict.fromkeys(row.result.dataset for row in self._rows()))

    def settings(self, dataset: str | None = None) -> dict[str, Any]:
        """Returns the settings of a validation set's latest series.

        Args:
          dataset: Its name. None takes the set that decides which checkpoint is best.
        """
        rows = self._of(dataset)
        return self._ledger.settings()[rows[0].result.series]

    def best(self, dataset: str | None = None, measure: str | None = None) -> Result | None:
        """Returns the best result, the earlier one of a tie; None if there is no result.

        Args:
          dataset: The name of a validation set. None takes the one that the run selects by.
          measure: The name of a measure. None takes the one that the run selects by.
        """
        if not self._rows():
            return None
        rows, measure = self._of(dataset), self._measure(dataset, measure)
        sign = -1 if _lower_is_better(measure) else 1
        return max(
            (row.result for row in rows), key=lambda result: sign * result.measures[measure]
        )

    def to_pandas(self) -> pd.DataFrame:
        """Returns a DataFrame with a row for each checkpoint and validation set.

        For a measure M there are the columns `M`, `M low` and `M high` (its 95% interval)
        and `M p` (the p-value of its difference from the step `against`). Seconds are in
        columns like `seconds search`.
        """
        pandas = _optional("pandas")
        frame: pd.DataFrame = pandas.DataFrame([_columns(result) for result in self.results])
        return frame

    def per_query(self, dataset: str | None = None, measure: str | None = None) -> pd.DataFrame:
        """Returns a measure of each query: a row for each step, a column for each query id.

        Args:
          dataset: The name of a validation set. None takes the one that the run selects by.
          measure: The name of a measure. None takes the one that the run selects by.
        """
        pandas = _optional("pandas")
        rows, measure = self._of(dataset), self._measure(dataset, measure)
        frame: pd.DataFrame = pandas.DataFrame(
            [self._ledger.per_query(row.id, measure) for row in rows],
            index=pandas.Index([row.result.step for row in rows], name="step"),
            columns=pandas.Index(self._query_ids(rows), name="query"),
        )
        return frame

    def compare(self, first: int, second: int, dataset: str | None = None) -> Comparison:
        """Compares two checkpoints query by query.

        Args:
          first: The step of the first checkpoint.
          second: The step of the second checkpoint.
          dataset: The name of a validation set. None takes the one that the run selects by.

        Raises:
          UserError: One of the steps has no result on the set.
        """
        from jaxval.metrics.significance import p_value

        rows = self._of(dataset)
        ids = self._query_ids(rows)
        pair = [_last_of_step(rows, step) for step in (first, second)]
        measures, changes = {}, {}
        for measure in pair[0].result.measures:
            old, new = (self._ledger.per_query(row.id, measure) for row in pair)
            means = float(old.mean()), float(new.mean())
            measures[measure] = Difference(*means, means[1] - means[0], p_value(new, old))
            changes[measure] = _changes(ids, old, new)
        return Comparison(rows[0].result.dataset, (first, second), measures, changes)

    def plot(self, measure: str | None = None, dataset: str | None = None) -> Figure:
        """Draws a measure over the training steps, with 95% intervals and the best marked.

        Args:
          measure: The name of a measure. None takes the one that the run selects by.
          dataset: The name of a validation set. None draws all.

        Returns:
          A matplotlib figure, which a notebook shows.
        """
        _optional("matplotlib")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in [dataset] if dataset else self.datasets:
            chosen = self._measure(name, measure)
            self._draw(axes, name, chosen)
            axes.set(xlabel="training step", ylabel=chosen)
        axes.legend()
        axes.grid(alpha=0.3)
        return figure

    def _draw(self, axes: Any, dataset: str, measure: str) -> None:
        results = sorted(
            (row.result for row in self._of(dataset)), key=lambda result: result.step or 0
        )
        steps = [result.step for result in results]
        low, high = zip(*(result.intervals[measure] for result in results), strict=True)
        (line,) = axes.plot(
            steps, [result.measures[measure] for result in results], "o-", ms=3, label=dataset
        )
        axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color(), lw=0)
        best = self.best(dataset, measure)
        if best is not None:
            axes.plot(best.step, best.measures[measure], "*", ms=14, color=line.get_color())

    def _rows(self) -> list[Row]:
        """Returns the rows of each validation set's latest series."""
        rows = self._ledger.rows()
        latest = {row.result.dataset: row.result.series for row in rows}
        return [row for row in rows if latest[row.result.dataset] == row.result.series]

    def _of(self, dataset: str | None) -> list[Row]:
        name = dataset or self._selected()[0]
        rows = [row for row in self._rows() if row.result.dataset == name]
        if not rows:
            known = ", ".join(self.datasets) or "none"
            raise UserError(f"{self._directory} has no result on {name!r} (it has: {known})")
        return rows

    def _measure(self, dataset: str | None, measure: str | None) -> str:
        known = list(self._of(dataset)[0].result.measures)
        selected = self._selected()[1]
        name = measure or (selected if selected in known else known[0])
        if name not in known:
            raise UserError(
                f"{self._directory} has no measure {name!r} (it has: {', '.join(known)})"
            )
        return name

    def _selected(self) -> tuple[str, str]:
        """Returns the set and the measure that the run selects by, from signals.json."""
        dataset, _, measure = _signals(self._directory).select_by.partition(":")
        if dataset in self.datasets:
            return dataset, measure
        return (self.datasets or [""])[0], ""

    def _query_ids(self, rows: Sequence[Row]) -> list[str]:
        return self._ledger.query_ids(rows[0].result.series)


def _signals(directory: Path) -> signals.State:
    try:
        return signals.read(directory)
    except ValueError:  # another version's file
        return signals.State()


def _lower_is_better(measure: str) -> bool:
    from jaxval.metrics import measures

    (parsed,) = measures.parse([measure], depth=1_000_000)
    return measures.lower_is_better(parsed)


def _last_of_step(rows: Sequence[Row], step: int) -> Row:
    """Returns the last row of a step; a step may be saved again."""
    matching = [row for row in rows if row.result.step == step]
    if not matching:
        known = ", ".join(str(row.result.step) for row in rows)
        raise UserError(
            f"step {step} has no result on {rows[0].result.dataset} (there are: {known})"
        )
    return matching[-1]


def _changes(
    query_ids: Sequence[str], old: np.ndarray, new: np.ndarray
) -> tuple[QueryChange, ...]:
    changed = [
        QueryChange(query_id, float(first), float(second))
        for query_id, first, second in zip(query_ids, old, new, strict=True)
        if first != second
    ]
    return tuple(sorted(changed, key=lambda change: change.difference))


def _columns(result: Result) -> dict[str, Any]:
    columns: dict[str, Any] = {"step": result.step, "dataset": result.dataset}
    for measure, mean in result.measures.items():
        low, high = result.intervals[measure]
        columns |= {measure: mean, f"{measure} low": low, f"{measure} high": high}
        columns[f"{measure} p"] = result.p_values.get(measure)
    columns |= {"against": result.against, "checkpoint": result.checkpoint}
    columns |= {"passages": result.passages, "queries": result.queries}
    columns |= {f"seconds {stage}": seconds for stage, seconds in result.seconds.items()}
    return columns | {"series": result.series, "finished": result.finished}


def _optional(package: str) -> Any:
    """Imports a package of the extra `analysis`."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"this needs the package {package}: pip install 'jaxval[analysis]'"
        ) from error
