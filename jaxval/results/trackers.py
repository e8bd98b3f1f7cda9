"""The trackers of a run, and how their failures are handled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from jaxval.records import Failure, Ranked, TrackedRun, Tracker
from jaxval.results.console import Console
from jaxval.results.jsonl import JsonLines
from jaxval.results.signal_file import SignalFile
from jaxval.results.tensorboard import TensorBoard

_LOG = logging.getLogger(__name__)

MakeTrackers = Callable[[TrackedRun], Sequence[Tracker]]
"""Makes the trackers of a run, e.g. `default_trackers`."""

_Event = TypeVar("_Event")


def default_trackers(run: TrackedRun, more: Sequence[Tracker] = ()) -> list[Tracker]:
    """Returns the trackers that the app uses, followed by those in `more`."""
    return [
        JsonLines(run.directory / "metrics.jsonl"),
        TensorBoard(run.directory / "tensorboard"),
        SignalFile(run.directory, run.select_by, run.patience, run.sample),
        Console(run.datasets, run.measures, run.select_by),
        *more,
    ]


class TrackerGroup:
    """Several trackers as one.

    If a tracker fails at a validation or failure, the error is logged and the run continues:
    the row is in the ledger, from which each tracker starts again in the next run.

    Args:
      trackers: The trackers, in the order in which they are called.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = trackers

    def begin(self, past: Sequence[Ranked], failures: Sequence[Failure]) -> None:
        """Starts each tracker."""
        for tracker in self._trackers:
            tracker.begin(past, failures)

    def record(self, ranked: Ranked) -> None:
        """Records a validation with each tracker."""
        for tracker in self._trackers:
            _call(tracker, tracker.record, ranked, ranked.validation.checkpoint.step)

    def fail(self, failure: Failure) -> None:
        """Records a failure with each tracker."""
        for tracker in self._trackers:
            _call(tracker, tracker.fail, failure, failure.checkpoint.step)

    def end(self) -> None:
        """Ends each tracker."""
        for tracker in self._trackers:
            tracker.end()


def _call(tracker: Tracker, method: Callable[[_Event], None], event: _Event, step: int) -> None:
    try:
        method(event)
    except Exception as error:
        name = type(tracker).__name__
        _LOG.error("step %d is in the ledger, but %s failed: %r", step, name, error)
