"""Prefetching: the next checkpoints are restored to host memory while one is validated.

Checkpoints that are not pinned come first, because the trainer may delete them at any time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from jaxval.checkpoints.restore import Restored
from jaxval.errors import UnreadableError
from jaxval.records import Checkpoint, Identity

_LOG = logging.getLogger(__name__)

Load = Callable[[Checkpoint], Restored]

_BACK_OFF = (1.0, 5.0, 25.0)  # seconds
_PAUSE = 0.2  # seconds


class Prefetcher:
    """A thread that keeps a bounded number of restored checkpoints in host memory.

    Args:
      waiting: Returns the queued checkpoints in the order in which they will be taken.
      load: Restores a checkpoint.
      capacity: The maximum number of restored checkpoints.
      back_off: The pause before each further attempt after the file system failed, in
        seconds.

    Attributes:
      retried: The number of further attempts so far.
    """

    def __init__(
        self,
        waiting: Callable[[], Sequence[Checkpoint]],
        load: Load,
        capacity: int,
        *,
        back_off: Sequence[float] = _BACK_OFF,
    ):
        self.retried = 0
        self._waiting = waiting
        self._load = load
        self._capacity = capacity
        self._back_off = back_off
        self._results: dict[Identity, Restored | Exception] = {}
        self._loading: Identity | None = None
        self._taken: set[Identity] = set()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restore ahead", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread once it has read the current checkpoint."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, checkpoint: Checkpoint) -> Restored:
        """Returns a restored checkpoint and releases it; restores it now if necessary.

        Raises:
          Exception: The error that restoring it raised.
        """
        identity = checkpoint.identity
        with self._changed:
            self._taken.add(identity)
            self._changed.wait_for(lambda: self._loading != identity)
            result = self._results.pop(identity, None)
        if result is None:
            result = self._try(checkpoint)
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self) -> None:
        while not self._stop.is_set():
            checkpoint = self._choose()
            if checkpoint is None:
                self._stop.wait(_PAUSE)
                continue
            result = self._try(checkpoint)
            with self._changed:
                self._results[checkpoint.identity] = result
                self._loading = None
                self._changed.notify_all()

    def _choose(self) -> Checkpoint | None:
        """Returns the next checkpoint to read and marks it, or None if there is none."""
        waiting = self._waiting()
        with self._changed:
            queue = [queued for queued in waiting if queued.identity not in self._taken]
            upcoming = [queued for queued in queue if queued.pin is None]
            upcoming += queue[: self._capacity]
            self._drop_all_but(upcoming)
            unread = [queued for queued in upcoming if queued.identity not in self._results]
            if not unread or len(self._results) >= self._capacity:
                return None
            self._loading = unread[0].identity
            return unread[0]

    def _drop_all_but(self, upcoming: Sequence[Checkpoint]) -> None:
        """Releases restored checkpoints that newer ones have moved back in the queue."""
        # What is in `_taken` stays: `take` may be waiting for it.
        wanted = {checkpoint.identity for checkpoint in upcoming} | self._taken
        for identity in self._results.keys() - wanted:
            del self._results[identity]

    def _try(self, checkpoint: Checkpoint) -> Restored | Exception:
        """Returns the restored checkpoint, or the error that restoring it raised."""
        pauses = iter(self._back_off)
        while True:
            try:
                return self._load(checkpoint)
            except OSError as error:
                pause = next(pauses, None)
                if pause is None or self._stop.is_set():
                    tries = len(self._back_off) + 1
                    return UnreadableError(
                        f"step {checkpoint.step} could not be read in {tries} attempts: {error}"
                    )
                self.retried += 1
                _LOG.warning(
                    "step %d could not be read, next attempt in %g s: %s",
                    checkpoint.step,
                    pause,
                    error,
                )
                self._stop.wait(pause)
            except Exception as error:  # raised again in `take`
                return error
