"""Validates checkpoint after checkpoint, until an end condition holds."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
from etils import epath

from jaxval.checkpoints.gaps import unseen
from jaxval.checkpoints.prefetch import Prefetcher
from jaxval.checkpoints.restore import Restored
from jaxval.config import Config
from jaxval.errors import CheckpointError, MismatchError, UnreadableError, UserError
from jaxval.evaluation.prepare import Prepared, prepare
from jaxval.evaluation.validate import compiling_ahead, load, validate
from jaxval.records import (
    SCREENED,
    Checkpoint,
    Failure,
    Identity,
    Progress,
    Source,
    TrackedRun,
    Tracker,
    Validation,
)
from jaxval.results import console
from jaxval.results.ledger import Ledger
from jaxval.results.trackers import MakeTrackers
from jaxval.run.misfits import Misfits
from jaxval.run.recorder import Recorder
from jaxval.run.series import open_series
from jaxval.run.summary import Tally, explain_no_checkpoint, print_summary

_LOG = logging.getLogger(__name__)
_LAG = 10.0  # seconds; a shorter queue is not logged


def run(
    config: Config,
    source: Source,
    open_devices: Callable[[], Sequence[jax.Device]],
    make_trackers: MakeTrackers,
    *,
    progress: Progress = console.progress,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Validates checkpoints until an end condition of `config.watching` holds.

    Args:
      config: The settings.
      source: Where the checkpoints come from.
      open_devices: Returns the devices to run on. Called when all settings have been checked.
      make_trackers: Makes the trackers.
      progress: Makes progress bars.
      clock: Returns the time in seconds.
      sleep: Waits for a number of seconds.

    Returns:
      The exit status: 0, or 1 if a checkpoint could not be validated.

    Raises:
      UserError: The settings or the data are wrong.
    """
    prepared = prepare(config.evaluation, open_devices, progress)
    ledger = Ledger(config.output.directory / "ledger.sqlite")
    with contextlib.closing(ledger):
        retry_failed = config.watching.retry_failed
        open_series(prepared, ledger, source.waiting(), retry_failed=retry_failed)
        trackers = make_trackers(_tracked(config, prepared))
        session = Session(
            *(config, source, prepared, ledger, trackers),
            progress=progress,
            clock=clock,
            sleep=sleep,
        )
        wrong = False
        try:
            with compiling_ahead(prepared.plan):
                session.begin()
                session.consume()
        except UserError:
            wrong = True
            raise
        finally:
            session.end()
            if session.tally.validated or not wrong:
                print_summary(config.output, session.tally, ledger, prepared.screening)
    return session.tally.status


class Session:
    """One run, from the first checkpoint to the last.

    Args:
      config: The settings.
      source: Where the checkpoints come from.
      prepared: What each checkpoint is evaluated on.
      ledger: Where the results are committed, with the series of `prepared` open.
      trackers: The trackers, which get each row of the ledger.
      progress: Makes progress bars.
      clock: Returns the time in seconds.
      sleep: Waits for a number of seconds.

    Attributes:
      tally: Counts of what became of the checkpoints.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        prepared: Prepared,
        ledger: Ledger,
        trackers: Sequence[Tracker],
        *,
        progress: Progress,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ):
        self.tally = Tally()
        self._watching = config.watching
        self._source = source
        self._plan = prepared.plan
        self._ledger = ledger
        self._recorder = Recorder(config.output, prepared, ledger, trackers, self.tally, sleep)
        self._progress = progress
        self._clock = clock
        self._prefetcher = Prefetcher(
            source.waiting, self._load, config.watching.host_checkpoints
        )
        self._misfits = Misfits()
        self._known_steps: set[int] = set()
        self._failed: set[Identity] = set()
        self._any_checkpoint = False
        self._logged_location: tuple[str, ...] = ()

    def begin(self) -> None:
        """Continues from the ledger and starts to read ahead."""
        series = {eval_set.series for eval_set in self._plan.sets}
        past, failures = self._ledger.validations(), self._ledger.failures()
        self._failed = {
            failure.checkpoint.identity
            for failure in failures
            if failure.series in series and failure.reason not in (SCREENED, "skipped")
        }
        rows: list[Validation | Failure] = [*past, *failures]
        self._known_steps = {row.checkpoint.step for row in rows if row.series in series}
        if not self._known_steps:
            self._known_steps = {old.step for old in self._source.left_behind[:1]}
        self._any_checkpoint = bool(rows or self._source.left_behind)
        self._misfits.fitted = any(validation.series in series for validation in past)
        self._recorder.begin(past, failures)
        self._prefetcher.start()
        directory = self._watching.checkpoint_dir
        note = "" if epath.Path(directory).exists() else ", which does not exist yet"
        _LOG.info("waiting for checkpoints in %s%s", directory, note)

    def consume(self) -> None:
        """Validates checkpoint after checkpoint, until an end condition holds.

        Raises:
          MismatchError: No checkpoint fits the encoder.
          UserError: The checkpoint directory does not exist.
        """
        watching = self._watching
        timeout = math.inf if watching.idle_timeout is None else watching.idle_timeout
        last_active = self._clock()
        while self.tally.validated != watching.max_validations:
            checkpoint = self._source.next(watching.poll_interval)
            if checkpoint is not None:
                self._any_checkpoint = True
                self._record_gap()
                self._take(checkpoint)
                if not self._source.waiting():
                    self._misfits.raise_last()
                last_active = self._clock()
            elif self._source.finished:
                _LOG.info("the training is complete")
                break
            elif self._clock() - last_active >= timeout:
                _LOG.info("no new checkpoint for %.0f s", timeout)
                break
        if not self._any_checkpoint:
            explain_no_checkpoint(watching.checkpoint_dir)

    def end(self) -> None:
        """Stops reading ahead and ends the trackers. Called also if the run fails."""
        self._prefetcher.stop()
        self.tally.retried = self._prefetcher.retried
        self._recorder.end()

    def _load(self, checkpoint: Checkpoint) -> Restored:
        return load(checkpoint, self._plan)

    def _take(self, checkpoint: Checkpoint) -> None:
        """Validates a checkpoint on the sets for which the ledger has no row of it."""
        if self._watching.order == "latest":
            self._skip_older(checkpoint)
        open_series = self._recorder.open_series(checkpoint)
        if not open_series:
            self.tally.known += 1
            self.tally.known_failed += checkpoint.identity in self._failed
            self._source.done(checkpoint)
            return
        start = self._clock()
        try:
            self._validate(checkpoint, open_series)
        except MismatchError as error:
            self._handle_mismatch(checkpoint, error)
        except UnreadableError as error:
            self._postpone(checkpoint, error)
        except CheckpointError as error:
            self._fail(checkpoint, error.reason, str(error))
        else:
            self._source.done(checkpoint)
            self._log_lag(self._clock() - start)

    def _skip_older(self, checkpoint: Checkpoint) -> None:
        for older in self._source.waiting():
            if older < checkpoint and self._recorder.open_series(older):
                self._fail(older, "skipped", f"step {checkpoint.step} was newer")

    def _validate(self, checkpoint: Checkpoint, open_series: set[str]) -> None:
        restored = self._prefetcher.take(checkpoint)
        self._note_fit(restored)
        label = f"step {checkpoint.step}"
        for result in validate(label, restored, self._plan, open_series, self._progress):
            # If the sample screens the checkpoint out, the series of the whole corpus is
            # removed here, and `validate` leaves it out.
            open_series -= self._recorder.add_result(checkpoint, result, restored)

    def _note_fit(self, restored: Restored) -> None:
        """Records the mismatches that were held back, now that a checkpoint fits."""
        self._source.need(restored.items)
        location = restored.found_at, *restored.remarks
        if location != self._logged_location:
            self._logged_location = location
            _LOG.info("parameters at %s", "; ".join(location))
        for checkpoint, error in self._misfits.release():
            self._fail(checkpoint, error.reason, str(error))

    def _handle_mismatch(self, checkpoint: Checkpoint, error: MismatchError) -> None:
        if self._misfits.fitted:
            self._fail(checkpoint, error.reason, str(error))
        else:
            self._misfits.hold(checkpoint, error)
            self._source.set_aside(checkpoint)

    def _postpone(self, checkpoint: Checkpoint, error: UnreadableError) -> None:
        """Leaves a checkpoint to the next run. It stays pinned and has no row."""
        self.tally.unreadable += 1
        self._source.set_aside(checkpoint)
        _LOG.error("%s; the next run will try it again", error)

    def _fail(self, checkpoint: Checkpoint, reason: str, message: str) -> None:
        unpinned = self._source.why_unpinned(checkpoint)
        message = f"{message} (it was not pinned: {unpinned})" if unpinned else message
        self._recorder.add_failure(checkpoint, reason, message)
        self._source.done(checkpoint)

    def _record_gap(self) -> None:
        """Commits a failure for each step that was saved and deleted while nothing watched.

        These steps precede the first new one of this run, or of an earlier run that was killed
        after it had pinned some.
        """
        known = self._known_steps
        new = {checkpoint.step for checkpoint in self._source.waiting()} - known
        if not known or not new:
            return
        self._known_steps = set()  # once for each run
        for step in _unseen_steps(known, new):
            path = epath.Path(self._watching.checkpoint_dir) / str(step)
            checkpoint = Checkpoint(step, str(step), 0, path)
            self._fail(checkpoint, "unseen", "saved and deleted while no jaxval was running")

    def _log_lag(self, seconds: float) -> None:
        """Logs how long the queue takes, at the given number of seconds for each checkpoint."""
        count = len(self._source.waiting())
        lag = seconds * count
        if count > 1 and lag >= _LAG:
            hint = " (see `order`)" if self._watching.order == "all" else ""
            message = "%d checkpoints are waiting; about %.0f s until the queue is empty%s"
            _LOG.info(message, count, lag, hint)


def _unseen_steps(known: Collection[int], new: Collection[int]) -> Iterator[int]:
    """Yields the steps that are missing between the known ones and the new ones."""
    before = sorted(known)
    for following in sorted(new):
        yield from unseen([step for step in before if step < following], following)
        before.append(following)


def _tracked(config: Config, prepared: Prepared) -> TrackedRun:
    screening = prepared.screening
    return TrackedRun(
        directory=config.output.directory,
        datasets={eval_set.series: eval_set.name for eval_set in prepared.plan.sets},
        measures=tuple(map(str, prepared.plan.measures)),
        select_by=prepared.select_by,
        sample=screening.sample if screening else None,
        patience=config.output.patience,
    )
