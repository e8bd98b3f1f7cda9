"""Records results and failures: in files, then in the ledger, then with the trackers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from jaxval.checkpoints.export import BestCheckpoints
from jaxval.checkpoints.restore import Restored
from jaxval.config import Output
from jaxval.evaluation.plan import SetResult
from jaxval.evaluation.prepare import Prepared
from jaxval.records import Checkpoint, Failure, Tracker, Validation
from jaxval.results.ledger import Ledger
from jaxval.results.run_files import write_run
from jaxval.results.trackers import TrackerGroup
from jaxval.results.writing import signals_deferred, wait_for_room
from jaxval.run.leaderboard import BestExports, Leaderboard
from jaxval.run.summary import Tally


class Recorder:
    """Writes the results of a run to its files, its ledger and its trackers.

    Each record waits until the disk has room, and signals wait until it is complete.

    Args:
      output: What is written.
      prepared: What each checkpoint is evaluated on.
      ledger: Where the rows are committed, with the series of `prepared` open.
      trackers: The trackers, which get each row.
      tally: Counts the records.
      sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        output: Output,
        prepared: Prepared,
        ledger: Ledger,
        trackers: Sequence[Tracker],
        tally: Tally,
        sleep: Callable[[float], None],
    ):
        self._output = output
        self._series = [eval_set.series for eval_set in prepared.plan.sets]
        self._screening = prepared.screening
        self._ledger = ledger
        self._trackers = TrackerGroup(trackers)
        self._tally = tally
        self._sleep = sleep
        self._leaderboard = Leaderboard(prepared.select_by, output.keep_best)
        self._exports = BestExports(
            self._leaderboard,
            prepared.select_by.series,
            BestCheckpoints(output.directory / "best"),
            output.keep_best,
        )

    def begin(self, past: Sequence[Validation], failures: Sequence[Failure]) -> None:
        """Ranks the validations in the ledger and starts the trackers."""
        ranked = [self._leaderboard.add(validation) for validation in past]
        self._trackers.begin(ranked, failures)
        self._exports.prune()

    def end(self) -> None:
        """Ends the trackers."""
        self._trackers.end()

    def open_series(self, checkpoint: Checkpoint) -> set[str]:
        """Returns the series of the run in which the checkpoint has no row yet."""
        return {series for series in self._series if not self._ledger.holds(checkpoint, series)}

    def add_result(
        self, checkpoint: Checkpoint, result: SetResult, restored: Restored
    ) -> set[str]:
        """Records a result, and the verdict if it screens the checkpoint out.

        Args:
          checkpoint: The checkpoint.
          result: Its result on one validation set.
          restored: Its parameters, which are exported if they are among the best.

        Returns:
          The series in which the checkpoint now has a row.
        """
        wait_for_room(self._output.directory, self._export_size(restored), self._sleep)
        validation = self._leaderboard.compared(result.validation(checkpoint))
        screened = self._screen(validation)
        with signals_deferred():
            # Files first: once the row is committed, nothing of the result may be missing.
            self._write_run(checkpoint, result)
            self._exports.export(validation, restored.params)
            self._ledger.commit(validation, screened)
            ranked = self._leaderboard.add(validation)
            self._exports.prune()
            self._trackers.record(ranked)
            for failure in screened:
                self._trackers.fail(failure)
            self._tally.screened += len(screened)
            self._tally.validated += not self.open_series(checkpoint)
        return {validation.series, *(failure.series for failure in screened)}

    def add_failure(self, checkpoint: Checkpoint, reason: str, message: str) -> None:
        """Records a failure in each series in which the checkpoint has no row yet.

        Args:
          checkpoint: The checkpoint.
          reason: One word, see `records.Failure`.
          message: An explanation for the user.
        """
        failures = [
            Failure(checkpoint, series, reason, message)
            for series in self.open_series(checkpoint)
        ]
        wait_for_room(self._output.directory, 0, self._sleep)
        with signals_deferred():
            self._ledger.fail(failures)
            self._tally.count(reason)
            for failure in failures:
                self._trackers.fail(failure)

    def _screen(self, validation: Validation) -> list[Failure]:
        """Returns the failure that screens the checkpoint out, or nothing."""
        screening = self._screening
        if screening is None or validation.series != screening.sample.series:
            return []
        if self._ledger.holds(validation.checkpoint, screening.whole.series):
            return []
        verdict = screening.verdict(validation, self._leaderboard.best(validation.series))
        return [verdict] if verdict else []

    def _write_run(self, checkpoint: Checkpoint, result: SetResult) -> None:
        form = self._output.write_run
        if form:
            folder = self._output.directory / "runs" / result.eval_set.name
            write_run(
                folder / f"{checkpoint.name}.{form}",
                form,
                result.eval_set.query_ids,
                result.hits,
                result.corpus.ids,
                tag=f"jaxval-{checkpoint.step}",
            )

    def _export_size(self, restored: Restored) -> int:
        """Returns the number of bytes of an export, or 0 if none is written."""
        if not self._output.keep_best:
            return 0
        return sum(leaf.nbytes for leaf in jax.tree.leaves(restored.params))
