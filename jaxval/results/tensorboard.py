"""TensorBoard: each measure at its training step, one TensorBoard run for each series."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from jaxval.records import Failure, Ranked, Validation


class TensorBoard:
    """Mirrors the ledger to event files in DIRECTORY/<dataset>/<series>.

    The directory is deleted and rewritten from the ledger at every start, because an event
    file does not show which of its points a killed run has written.

    Args:
      directory: The directory of the event files.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._writers: dict[str, Any] = {}

    def begin(self, past: Sequence[Ranked], failures: Sequence[Failure]) -> None:
        """Writes what the ledger holds."""
        shutil.rmtree(self._directory, ignore_errors=True)
        for ranked in past:
            self.record(ranked)

    def record(self, ranked: Ranked) -> None:
        """Adds a point to the curve of each measure and flushes it."""
        validation = ranked.validation
        writer = self._writer(validation)
        step = validation.checkpoint.step
        for name, mean in validation.measures.items():
            # Tags cannot contain @ or parentheses: RR@10 has the tag RR_10 and the display
            # name RR@10.
            _add(writer, name, mean, step)
        _add(writer, "passages_per_second", validation.rate, step)
        writer.flush()

    def fail(self, failure: Failure) -> None:
        """Does nothing: a failure has no measures."""

    def end(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, validation: Validation) -> Any:
        if validation.series not in self._writers:
            folder = self._directory / validation.dataset / validation.series[:8]
            folder.mkdir(parents=True, exist_ok=True)
            # SummaryWriter's thread dies when the disk is full, and its calls then block.
            self._writers[validation.series] = EventsWriter(str(folder / "events"))
        return self._writers[validation.series]


def _add(writer: Any, name: str, value: float, step: int) -> None:
    summary = scalar(name, value, display_name=name)
    writer.write_event(Event(step=step, wall_time=time.time(), summary=summary))
