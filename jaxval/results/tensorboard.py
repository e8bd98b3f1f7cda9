"""TensorBoard: each measure at its training step, a run a series."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from jaxval.records import Failure, Validation


class TensorBoard:
    """Mirrors the ledger to event files in DIRECTORY/<dataset>/<series>.

    The directory belongs to jaxval: it is made anew from the ledger at every start, since
    an event file cannot tell which of its points a killed run has written.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._writers: dict[str, Any] = {}

    def begin(self, past: Sequence[Validation], failures: Sequence[Failure]) -> None:
        """Writes what the ledger holds."""
        shutil.rmtree(self._directory, ignore_errors=True)
        for validation in past:
            self.record(validation)

    def record(self, validation: Validation) -> None:
        """Adds a point to each measure's curve; it is on disk on return."""
        writer = self._writer(validation)
        step = validation.checkpoint.step
        for name, mean in validation.measures.items():
            # A tag may not hold @ or parentheses: RR@10 is tagged RR_10, and shown as RR@10.
            _add(writer, name, mean, step)
        _add(writer, "passages_per_second", validation.rate, step)
        writer.flush()

    def fail(self, failure: Failure) -> None:
        """A failure has no point on a curve."""

    def end(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, validation: Validation) -> Any:
        if validation.series not in self._writers:
            folder = self._directory / validation.dataset / validation.series[:8]
            folder.mkdir(parents=True, exist_ok=True)
            # Not SummaryWriter: its thread dies of a full disk, and then keeps us waiting.
            self._writers[validation.series] = EventsWriter(str(folder / "events"))
        return self._writers[validation.series]


def _add(writer: Any, name: str, value: float, step: int) -> None:
    summary = scalar(name, value, display_name=name)
    writer.write_event(Event(step=step, wall_time=time.time(), summary=summary))
