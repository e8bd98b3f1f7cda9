"""Restoring ahead: the next checkpoints are read into host memory while one is validated.

Those that could not be pinned come first, since the trainer may delete them any moment.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from jaxval.checkpoints.restore import Restored
from jaxval.errors import UnreadableError
from jaxval.records import Checkpoint

_LOG = logging.getLogger(__name__)

Load = Callable[[Checkpoint], Restored]
Identity = tuple[str, int]

_BACK_OFF = (1.0, 5.0, 25.0)
_PAUSE = 0.2


class Prefetcher:
    """A bounded number of restored checkpoints, filled by a thread.

    Args:
      waiting: gives the checkpoints in the order in which they will be asked for.
      load: restores one.
      capacity: how many are held at most.
      back_off: seconds before each new try after the file system failed.

    Attributes:
      retried: how often a checkpoint was tried again.
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
        self._held: dict[Identity, Restored | Exception] = {}
        self._loading: Identity | None = None
        self._taken: set[Identity] = set()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restore ahead", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it is reading."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, checkpoint: Checkpoint) -> Restored:
        """A restored checkpoint, from memory if it is there; it is held no longer.

        Raises:
          Exception: what kept it from being restored.
        """
        identity = checkpoint.identity
        with self._changed:
            self._taken.add(identity)
            self._changed.wait_for(lambda: self._loading != identity)
            result = self._held.pop(identity, None)
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
                self._held[checkpoint.identity] = result
                self._loading = None
                self._changed.notify_all()

    def _choose(self) -> Checkpoint | None:
        """The next to read, marked as being read; None if there is nothing to do."""
        line = self._waiting()
        with self._changed:
            line = [one for one in line if one.identity not in self._taken]
            soon = [one for one in line if one.pin is None] + line[: self._capacity]
            self._drop_all_but(soon)
            absent = [one for one in soon if one.identity not in self._held]
            if not absent or len(self._held) >= self._capacity:
                return None
            self._loading = absent[0].identity
            return absent[0]

    def _drop_all_but(self, soon: Sequence[Checkpoint]) -> None:
        """A newer checkpoint may have pushed a held one to the back of the line."""
        wanted = {one.identity for one in soon} | self._taken  # `take` is waiting for that
        for identity in self._held.keys() - wanted:
            del self._held[identity]

    def _try(self, checkpoint: Checkpoint) -> Restored | Exception:
        pauses = iter(self._back_off)
        while True:
            try:
                return self._load(checkpoint)
            except OSError as error:
                pause = next(pauses, None)
                if pause is None or self._stop.is_set():
                    tries = len(self._back_off) + 1
                    return UnreadableError(
                        f"step {checkpoint.step}: {tries} tries to read it failed: {error}"
                    )
                self.retried += 1
                _LOG.warning("step %d, next try in %g s: %s", checkpoint.step, pause, error)
                self._stop.wait(pause)
            except Exception as error:  # whoever takes it gets it
                return error
