"""Pending checkpoints -> validate -> ledger -> trackers, until there is no more to do."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath

from jaxval.checkpoints.commit import folder_with_checkpoints
from jaxval.checkpoints.export import BestCheckpoints, export_name
from jaxval.checkpoints.gaps import unseen
from jaxval.checkpoints.prefetch import Prefetcher
from jaxval.checkpoints.restore import Restored
from jaxval.config import Config
from jaxval.errors import CheckpointError, MismatchError, UnreadableError, UserError
from jaxval.evaluation.plan import EvalPlan, SetResult
from jaxval.evaluation.prepare import Prepared, prepare
from jaxval.evaluation.validate import compiling_ahead, load, validate
from jaxval.metrics.screening import Screening
from jaxval.metrics.significance import compare
from jaxval.records import (
    SCREENED,
    Checkpoint,
    Failure,
    Progress,
    Standing,
    Tracker,
    Validation,
)
from jaxval.results.console import Console, progress
from jaxval.results.jsonl import JsonLines
from jaxval.results.ledger import Ledger
from jaxval.results.run_files import write_run
from jaxval.results.signal_file import SignalFile
from jaxval.results.tensorboard import TensorBoard

_LOG = logging.getLogger(__name__)
_ROOM = 8 * 2**20  # bytes that must be free before anything is written
_ROOM_PAUSE = 5.0
_LAG = 10.0  # seconds behind the trainer that are worth a word


class Source(Protocol):
    """Where checkpoints come from: checkpoints.watch.Watcher."""

    def waiting(self) -> list[Checkpoint]:
        """Those in line, the next first."""
        ...

    def next(self, timeout: float) -> Checkpoint | None:
        """The next to validate, or None if there is none within `timeout` seconds."""
        ...

    def done(self, checkpoint: Checkpoint) -> None:
        """It needs no more attention."""
        ...

    def need(self, items: Collection[str]) -> None:
        """Only these items of a checkpoint are needed."""
        ...

    def why_unpinned(self, checkpoint: Checkpoint) -> str:
        """Why it could not be protected from its trainer; empty if it could."""
        ...

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Takes it out of the line, but keeps it readable."""
        ...

    @property
    def left_behind(self) -> Sequence[Checkpoint]:
        """What stood in line when an earlier run ended."""
        ...

    @property
    def finished(self) -> bool:
        """Whether none will come any more."""
        ...


@dataclasses.dataclass
class Tally:
    """What became of the checkpoints of this run."""

    validated: int = 0
    known: int = 0
    lost: int = 0
    corrupt: int = 0
    unreadable: int = 0
    skipped: int = 0
    screened: int = 0
    retried: int = 0

    def count(self, reason: str) -> None:
        """Counts a failure."""
        if reason in ("vanished", "unseen"):
            self.lost += 1
        elif reason == "skipped":
            self.skipped += 1
        else:
            self.corrupt += 1

    def __str__(self) -> str:
        parts = [f"{self.validated} validated", f"{self.known} already in the ledger"]
        parts += [f"{self.lost} lost", f"{self.corrupt} corrupt", f"{self.retried} retried"]
        parts += [f"{self.skipped} skipped"] * bool(self.skipped)
        parts += [f"{self.screened} screened out"] * bool(self.screened)
        parts += [f"{self.unreadable} unreadable"] * bool(self.unreadable)
        return ", ".join(parts)


def run(config: Config, source: Source, devices: Callable[[], Sequence[jax.Device]]) -> int:
    """Validates until an end is reached; returns the exit status.

    Raises:
      UserError: the settings or the data are at fault.
    """
    prepared = prepare(config, devices, progress)
    ledger = Ledger(config.output_dir / "ledger.sqlite")
    with contextlib.closing(ledger):
        _open_series(config, source, prepared, ledger)
        session = Session(config, source, prepared, ledger, _trackers(config, prepared))
        refused = False
        try:
            with compiling_ahead(prepared.plan):
                session.begin()
                session.consume()
        except UserError:
            refused = True
            raise
        finally:
            session.end()
            if session.tally.validated or not refused:
                _say_saved(prepared, ledger)
                _say_where(config, session.tally)
    return 1 if session.tally.corrupt or session.tally.unreadable else 0


class Session:
    """One run, from the first checkpoint to the last."""

    def __init__(
        self,
        config: Config,
        source: Source,
        prepared: Prepared,
        ledger: Ledger,
        trackers: Sequence[Tracker],
        *,
        progress: Progress = progress,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.tally = Tally()
        self._config = config
        self._source = source
        self._plan: EvalPlan = prepared.plan
        self._select_by = prepared.select_by
        self._screening = prepared.screening
        self._ledger = ledger
        self._trackers = trackers
        self._progress = progress
        self._clock = clock
        self._sleep = sleep
        self._ahead = Prefetcher(source.waiting, self._load, config.watching.host_checkpoints)
        self._exports = BestCheckpoints(config.output_dir / "best")
        self._ranking: dict[str, list[Validation]] = {}
        self._known_steps: set[int] = set()
        self._misfits: list[tuple[Checkpoint, MismatchError]] = []
        self._fitted = False
        self._seen = False
        self._said: tuple[str, tuple[str, ...]] = "", ()

    def begin(self) -> None:
        """Takes up where the ledger ends."""
        series = {judged.series for judged in self._plan.sets}
        past, failures = self._ledger.validations(), self._ledger.failures()
        for validation in past:
            if validation.series in series:
                self._rank(validation)
                self._fitted = True
        rows: list[Validation | Failure] = [*past, *failures]
        self._known_steps = {one.checkpoint.step for one in rows if one.series in series}
        if not self._known_steps:
            self._known_steps = {one.step for one in self._source.left_behind[:1]}
        self._seen = bool(rows or self._source.left_behind)
        for tracker in self._trackers:
            tracker.begin(past, failures)
        self._prune()
        self._ahead.start()
        root = self._config.watching.checkpoint_dir
        there = epath.Path(root).exists()
        _LOG.info("waiting for checkpoints in %s%s", root, "" if there else ", not there yet")

    def consume(self) -> None:
        """Takes checkpoint after checkpoint, until one of the ends that Watching names.

        Raises:
          MismatchError: not one of them fits the encoder.
          UserError: the directory never came to be.
        """
        watching = self._config.watching
        patience = math.inf if watching.idle_timeout is None else watching.idle_timeout
        busy = self._clock()
        while self.tally.validated != watching.max_validations:
            checkpoint = self._source.next(watching.poll_interval)
            if checkpoint is not None:
                self._seen = True
                self._note_gap()
                self._take(checkpoint)
                self._stop_if_none_fits()
                busy = self._clock()
            elif self._source.finished:
                _LOG.info("the training is complete")
                return self._check_place()
            elif self._clock() - busy >= patience:
                _LOG.info("no checkpoint for %.0f s", watching.idle_timeout)
                return self._check_place()
        return None

    def _check_place(self) -> None:
        """Where nothing was ever seen, the wrong directory may have been watched.

        Raises:
          UserError: there is no such directory.
        """
        root = self._config.watching.checkpoint_dir
        if self._seen:
            return
        if not epath.Path(root).exists():
            raise UserError(
                f"`checkpoint_dir={root}` is still not there: name the directory that the"
                " trainer saves in, or wait longer with `idle_timeout`"
            )
        below = folder_with_checkpoints(root)
        hint = f"did you mean {below}?" if below else "is it where the trainer saves?"
        _LOG.warning("no checkpoint was ever seen in %s: %s", root, hint)

    def end(self) -> None:
        """Leaves everything whole, however the run ends."""
        self._ahead.stop()
        self.tally.retried = self._ahead.retried
        for tracker in self._trackers:
            tracker.end()

    def _load(self, checkpoint: Checkpoint) -> Restored:
        return load(checkpoint, self._plan)

    def _take(self, checkpoint: Checkpoint) -> None:
        """Validates a checkpoint on the sets for which the ledger has no row of it."""
        if self._config.watching.order == "latest":
            for other in self._source.waiting():
                if other < checkpoint and self._wanted(other):
                    self._fail(other, "skipped", f"step {checkpoint.step} was newer")
        wanted = self._wanted(checkpoint)
        if not wanted:
            self.tally.known += 1
            return self._source.done(checkpoint)
        start = self._clock()
        try:
            self._validate(checkpoint, wanted)
        except MismatchError as error:
            return self._misfit(checkpoint, error)
        except UnreadableError as error:
            return self._postpone(checkpoint, error)
        except CheckpointError as error:
            return self._fail(checkpoint, error.reason, str(error))
        self._source.done(checkpoint)
        return self._say_lag(self._clock() - start)

    def _wanted(self, checkpoint: Checkpoint) -> set[str]:
        every = (judged.series for judged in self._plan.sets)
        return {series for series in every if not self._ledger.holds(checkpoint, series)}

    def _validate(self, checkpoint: Checkpoint, wanted: set[str]) -> None:
        restored = self._ahead.take(checkpoint)
        self._fits(restored)
        for outcome in validate(checkpoint, restored, self._plan, wanted, self._progress):
            self._wait_for_room(_bytes(restored) if self._config.keep_best else 0)
            with _undisturbed():
                # It is validated on the sample first; what is screened out ends there.
                wanted -= self._keep(outcome, restored)
                self.tally.validated += not wanted

    def _keep(self, outcome: SetResult, restored: Restored) -> set[str]:
        """Files first: once the row is there, nothing of the result may be missing.

        Returns:
          The series in which this checkpoint has its row now.
        """
        validation = self._compared(outcome.validation)
        screened = self._screened(validation)
        if self._config.write_run:
            _write_run(self._config, outcome)
        if self._ranks_for_export(validation):
            self._exports.export(validation.checkpoint, restored.params)
        self._ledger.commit(validation, screened)
        self._rank(validation)
        self._prune()
        for tracker in self._trackers:
            _mirror(tracker.record, validation)
        self._tell(screened)
        self.tally.screened += len(screened)
        return {validation.series, *(failure.series for failure in screened)}

    def _screened(self, validation: Validation) -> list[Failure]:
        """That it is not to be confirmed, unless it is, or there is nothing to say."""
        screening = self._screening
        if screening is None or validation.series != screening.sample.series:
            return []
        if self._ledger.holds(validation.checkpoint, screening.whole.series):
            return []
        best = next(iter(self._ranking.get(validation.series, [])), None)
        failure = screening.verdict(validation, best)
        return [failure] if failure else []

    def _compared(self, validation: Validation) -> Validation:
        """With how it stands against the best of its series so far."""
        ranking = self._ranking.get(validation.series)
        found = compare(validation.per_query, ranking[0].per_query if ranking else None)
        against = ranking[0].checkpoint.step if ranking else None
        standing = Standing(found.intervals, against, found.p_values)
        return dataclasses.replace(validation, standing=standing)

    def _rank(self, validation: Validation) -> None:
        """Puts it in its place among its series, the best first; the earlier of equals."""
        ranking = self._ranking.setdefault(validation.series, [])
        ranking.append(validation)
        ranking.sort(key=self._select_by.worth, reverse=True)
        del ranking[max(1, self._config.keep_best) :]

    def _ranks_for_export(self, validation: Validation) -> bool:
        if self._config.keep_best == 0 or validation.series != self._select_by.series:
            return False
        ranking = self._ranking.get(validation.series, [])
        worth = self._select_by.worth
        ahead = sum(worth(one) >= worth(validation) for one in ranking)
        return ahead < self._config.keep_best

    def _prune(self) -> None:
        ranking = self._ranking.get(self._select_by.series, [])
        if self._config.keep_best and ranking:
            names = [export_name(validation.checkpoint) for validation in ranking]
            self._exports.keep(names, best=names[0])

    def _fits(self, restored: Restored) -> None:
        """The settings fit one checkpoint: those that they do not fit are at fault."""
        self._fitted = True
        self._source.need(restored.items)
        if (restored.found_at, restored.remarks) != self._said:
            self._said = restored.found_at, restored.remarks
            _LOG.info("parameters at %s", "; ".join((restored.found_at, *restored.remarks)))
        while self._misfits:
            checkpoint, error = self._misfits.pop()
            self._fail(checkpoint, error.reason, str(error))

    def _misfit(self, checkpoint: Checkpoint, error: MismatchError) -> None:
        """As long as none has fitted, the settings may be at fault: nothing is recorded."""
        if self._fitted:
            return self._fail(checkpoint, error.reason, str(error))
        self._misfits.append((checkpoint, error))
        return self._source.set_aside(checkpoint)

    def _stop_if_none_fits(self) -> None:
        if self._misfits and not self._source.waiting():
            raise self._misfits[-1][1]

    def _postpone(self, checkpoint: Checkpoint, error: UnreadableError) -> None:
        """Nothing is known against the checkpoint: it stays pinned for the next start."""
        self.tally.unreadable += 1
        self._source.set_aside(checkpoint)
        _LOG.error("%s: it is taken up again at the next start", error)

    def _fail(self, checkpoint: Checkpoint, reason: str, message: str) -> None:
        """One row a series that has none of it, and the loop goes on."""
        why = self._source.why_unpinned(checkpoint)
        message = f"{message} (it was not pinned: {why})" if why else message
        failures = [
            Failure(checkpoint, series, reason, message) for series in self._wanted(checkpoint)
        ]
        self._wait_for_room()
        with _undisturbed():
            self._ledger.fail(failures)
            self.tally.count(reason)
            self._tell(failures)
        self._source.done(checkpoint)

    def _tell(self, failures: Sequence[Failure]) -> None:
        for tracker in self._trackers:
            for failure in failures:
                _mirror(tracker.fail, failure)

    def _note_gap(self) -> None:
        """Records, once, the steps that came and went before this run began, or before an
        earlier one that pinned those after them and was killed."""
        known, waiting = self._known_steps, {one.step for one in self._source.waiting()}
        if not known or not waiting - known:
            return
        self._known_steps = set()
        for following in sorted(waiting - known):
            for step in unseen([one for one in known if one < following], following):
                path = epath.Path(self._config.watching.checkpoint_dir) / str(step)
                checkpoint = Checkpoint(step, str(step), 0, path)
                why = "it came and went while no jaxval was running"
                self._fail(checkpoint, "unseen", why)
            known.add(following)

    def _wait_for_room(self, more: int = 0) -> None:
        """Writes nothing, rather than half of it, until the disk has room again.

        Args:
          more: bytes that are needed beside _ROOM.
        """
        said, needed = False, _ROOM + more
        while (free := shutil.disk_usage(self._config.output_dir).free) < needed:
            if not said:
                _LOG.error(
                    "%s has only %.1f MiB left of the %.1f that are needed:"
                    " waiting until there is room",
                    self._config.output_dir,
                    free / 2**20,
                    needed / 2**20,
                )
            said = True
            self._sleep(_ROOM_PAUSE)

    def _say_lag(self, seconds: float) -> None:
        waiting = self._source.waiting()
        if len(waiting) > 1 and seconds * len(waiting) >= _LAG:
            _LOG.info(
                "%d checkpoints wait; at %.0f s each, the last of them is %.0f s away%s",
                len(waiting),
                seconds,
                seconds * len(waiting),
                "" if self._config.watching.order != "all" else " (see `order`)",
            )


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


def _bytes(restored: Restored) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(restored.params))


def _mirror(tell: Callable[[Any], None], row: Validation | Failure) -> None:
    """A mirror that cannot be written is made whole at the next start: the row is there."""
    try:
        tell(row)
    except OSError as error:
        _LOG.error("step %d is in the ledger, but not mirrored: %s", row.checkpoint.step, error)


def _open_series(config: Config, source: Source, prepared: Prepared, ledger: Ledger) -> None:
    for judged in prepared.plan.sets:
        settings = prepared.settings[judged.series]
        _say_what_changed(ledger.settings(judged.name), judged.series, settings)
        ledger.open_series(judged.series, judged.name, settings, judged.query_ids)
    there = {one.identity for one in source.waiting()}  # what is lost stays so
    if prepared.screening:
        _reopen(prepared.screening, ledger, there)
    if config.watching.retry_failed:
        kept = [SCREENED] if prepared.screening else []
        forgotten = ledger.forget_failures(list(prepared.settings), there, but=kept)
        _LOG.info("%d failures of earlier runs are tried again", forgotten)


def _reopen(screening: Screening, ledger: Ledger, there: Collection[tuple[str, int]]) -> None:
    """What another sample screened out is put to this one: its row there came with a result
    of that sample, and there is none of this."""
    sample, whole = screening.sample, screening.whole
    reopened = ledger.reopen(SCREENED, whole.series, sample.series, there)
    if reopened:
        _LOG.warning(
            "%d checkpoints were screened out by another sample than %s is now: they are put"
            " to this one",
            *(reopened, sample.dataset),
        )


def _say_what_changed(
    earlier: Mapping[str, Mapping[str, Any]], series: str, settings: Mapping[str, Any]
) -> None:
    if not earlier or series in earlier:
        return
    last = list(earlier.values())[-1]
    names = dict.fromkeys([*settings, *last])
    changed = [name for name in names if last.get(name) != settings.get(name)]
    _LOG.warning(
        "%s: another %s than before, so a new series begins (%s). The results of the earlier"
        " %d stay in the ledger, apart from these",
        settings["dataset"],
        " and ".join(changed),
        series[:8],
        len(earlier),
    )


def _write_run(config: Config, outcome: SetResult) -> None:
    checkpoint, form = outcome.validation.checkpoint, config.write_run or ""
    write_run(
        config.output_dir / "runs" / outcome.judged.name / f"{checkpoint.name}.{form}",
        form,
        outcome.judged.query_ids,
        outcome.hits,
        outcome.corpus.ids,
        tag=f"jaxval-{checkpoint.step}",
    )


def _trackers(config: Config, prepared: Prepared) -> list[Tracker]:
    series = {judged.series for judged in prepared.plan.sets}
    sample = prepared.screening.sample if prepared.screening else None
    measures = [str(measure) for measure in prepared.plan.measures]
    return [
        JsonLines(config.output_dir / "metrics.jsonl"),
        TensorBoard(config.output_dir / "tensorboard"),
        SignalFile(config.output_dir, prepared.select_by, config.patience, sample),
        Console(series, measures, prepared.select_by),
    ]


def _say_saved(prepared: Prepared, ledger: Ledger) -> None:
    if prepared.screening:
        rows = ledger.validations(), ledger.failures()
        said = prepared.screening.saved(*rows), prepared.screening.estimated(*rows)
        print(*filter(None, said), sep="\n")


def _say_where(config: Config, tally: Tally) -> None:
    out = config.output_dir
    print(tally)
    print(f"ledger       {out / 'ledger.sqlite'}")
    print(f"metrics      {out / 'metrics.jsonl'}")
    if config.write_run:
        print(f"runs         {out / 'runs'}")
    if config.keep_best:
        print(f"best         {out / 'best' / 'best'}")
    print(f"TensorBoard  tensorboard --logdir {out / 'tensorboard'}", flush=True)
