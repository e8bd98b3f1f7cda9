"""Pending checkpoints -> validate -> ledger -> trackers, until there is no more to do."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax

from jaxval.config import Config
from jaxval.errors import CheckpointError, VanishedError
from jaxval.ledger import Ledger
from jaxval.prepare import Prepared, prepare
from jaxval.records import Checkpoint, Progress, Tracker
from jaxval.trackers.console import Console, progress
from jaxval.trackers.jsonl import JsonLines
from jaxval.trackers.runs import write_run
from jaxval.trackers.tensorboard import TensorBoard
from jaxval.validate import Outcome, validate

_LOG = logging.getLogger(__name__)


class Source(Protocol):
    """Where checkpoints come from: checkpoints.watch.Watcher."""

    def next(self, timeout: float) -> Checkpoint | None:
        """The next to validate, or None if there is none within `timeout` seconds."""
        ...

    def done(self, checkpoint: Checkpoint) -> None:
        """It needs no more attention."""
        ...

    @property
    def finished(self) -> bool:
        """Whether none will come any more."""
        ...

    @property
    def backlog(self) -> int:
        """How many wait."""
        ...


@dataclasses.dataclass
class Tally:
    """What became of the checkpoints of this run."""

    validated: int = 0
    skipped: int = 0
    lost: int = 0
    corrupt: int = 0

    def __str__(self) -> str:
        told = f"{self.validated} validated, {self.skipped} already in the ledger"
        return f"{told}, {self.lost} lost, {self.corrupt} corrupt"


def run(config: Config, source: Source, devices: Sequence[jax.Device]) -> int:
    """Validates until an end is reached; returns the exit status.

    Raises:
      UserError: the settings or the data are at fault.
    """
    prepared = prepare(config, devices, progress)
    ledger = Ledger(config.output_dir / "ledger.sqlite")
    for judged in prepared.bench.sets:
        settings = prepared.settings[judged.series]
        ledger.open_series(judged.series, judged.name, settings, judged.query_ids)
    trackers = _trackers(config, prepared)
    for tracker in trackers:
        tracker.begin(ledger.validations())
    tally = Tally()
    try:
        _LOG.info("waiting for checkpoints in %s", config.watching.checkpoint_dir)
        _consume(config, source, prepared, ledger, trackers, tally, progress)
    finally:
        for tracker in trackers:
            tracker.end()
        _say_where(config, tally)
        ledger.close()
    return 1 if tally.corrupt else 0


def _consume(
    config: Config,
    source: Source,
    prepared: Prepared,
    ledger: Ledger,
    trackers: Sequence[Tracker],
    tally: Tally,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Takes checkpoint after checkpoint, until one of the ends that Watching names."""
    watching = config.watching
    busy = clock()
    while tally.validated != watching.max_validations:
        checkpoint = source.next(watching.poll_interval)
        if checkpoint is not None:
            _take(checkpoint, config, prepared, ledger, trackers, tally, progress)
            source.done(checkpoint)
            busy = clock()
        elif source.finished:
            _LOG.info("the training is complete")
            return
        elif watching.idle_timeout is not None and clock() - busy >= watching.idle_timeout:
            _LOG.info("no checkpoint for %.0f s", watching.idle_timeout)
            return


def _take(
    checkpoint: Checkpoint,
    config: Config,
    prepared: Prepared,
    ledger: Ledger,
    trackers: Sequence[Tracker],
    tally: Tally,
    progress: Progress,
) -> None:
    """Validates a checkpoint on the sets for which the ledger has no row of it."""
    sets = prepared.bench.sets
    wanted = {one.series for one in sets if not ledger.holds(checkpoint, one.series)}
    if not wanted:
        tally.skipped += 1
        return
    try:
        for outcome in validate(checkpoint, prepared.bench, frozenset(wanted), progress):
            with _undisturbed():
                _keep(outcome, config, ledger, trackers)
                wanted.discard(outcome.validation.series)
                tally.validated += not wanted
    except VanishedError as error:
        tally.lost += 1
        _LOG.warning("step %d is lost: %s", checkpoint.step, error)
    except CheckpointError as error:
        tally.corrupt += 1
        _LOG.error("step %d cannot be validated (%s): %s", checkpoint.step, error.reason, error)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Puts off Ctrl-C and SIGTERM, so that a committed row is also shown and counted."""
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _keep(
    outcome: Outcome, config: Config, ledger: Ledger, trackers: Sequence[Tracker]
) -> None:
    """The run file first: once the row is there, nothing of the result may be missing."""
    validation = outcome.validation
    if config.write_run:
        name = f"{validation.checkpoint.name}.{config.write_run}"
        write_run(
            config.output_dir / "runs" / validation.dataset / name,
            config.write_run,
            outcome.judged.query_ids,
            outcome.hits,
            outcome.corpus.ids,
            tag=f"jaxval-{validation.checkpoint.step}",
        )
    ledger.commit(validation)
    for tracker in trackers:
        tracker.record(validation)


def _trackers(config: Config, prepared: Prepared) -> list[Tracker]:
    series = {judged.series for judged in prepared.bench.sets}
    measures = [str(measure) for measure in prepared.bench.measures]
    return [
        JsonLines(config.output_dir / "metrics.jsonl"),
        TensorBoard(config.output_dir / "tensorboard"),
        Console(series, measures),
    ]


def _say_where(config: Config, tally: Tally) -> None:
    out = config.output_dir
    print(tally)
    print(f"ledger       {out / 'ledger.sqlite'}")
    print(f"metrics      {out / 'metrics.jsonl'}")
    if config.write_run:
        print(f"runs         {out / 'runs'}")
    print(f"TensorBoard  tensorboard --logdir {out / 'tensorboard'}", flush=True)
