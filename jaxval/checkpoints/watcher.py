"""The watcher: a thread that finds committed checkpoints, pins them and queues them.

It is started before JAX is imported. The import takes seconds, in which a trainer that keeps
two checkpoints may delete one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from etils import epath

from jaxval.checkpoints.commit import COMPLETE, committed, files
from jaxval.checkpoints.pins import LinksUnsupported, PinLimitReached, Pins
from jaxval.errors import VanishedError
from jaxval.records import Checkpoint, Identity, PinLimit

_LOG = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds
_NO_LIMIT = PinLimit()

Listing = Callable[[epath.PathLike], list[Checkpoint]]


class Watcher:
    """Polls `root` for committed checkpoints; pins and queues each new one.

    A checkpoint stays in the queue until `done` or `set_aside`. One that cannot be pinned is
    queued too, to be read where the trainer wrote it.

    Args:
      root: The trainer's directory, which is only read.
      pin_dir: The directory for pins.
      interval: The time between two polls, in seconds.
      limit: How many checkpoints and bytes may be pinned.
      newest_first: Whether the highest step in the queue comes first; else the lowest does.
      listing: Lists the committed checkpoints in a directory.

    Attributes:
      left_behind: The checkpoints that an earlier run pinned and did not validate.
    """

    def __init__(
        self,
        root: str,
        pin_dir: Path,
        *,
        interval: float,
        limit: PinLimit = _NO_LIMIT,
        newest_first: bool = False,
        listing: Listing = committed,
    ):
        self._root = epath.Path(root)
        self._pins = Pins(pin_dir, limit)
        self._interval = interval
        self._newest_first = newest_first
        self._listing = listing
        self.left_behind: tuple[Checkpoint, ...] = ()
        self._seen: set[Identity] = set()
        self._queue: dict[Identity, Checkpoint] = {}
        self._unpinned: dict[Identity, str] = {}
        self._no_links = ""
        self._stamped: set[str] = set()
        self._unstamped: dict[str, tuple[int, list[str]]] = {}
        self._unsettled = False
        self._complete = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Queues what an earlier run left pinned, polls once, and starts the thread."""
        self.left_behind = tuple(self._pins.left_behind(self._root))
        for checkpoint in self.left_behind:
            self._enqueue(checkpoint)
        self._try_to_poll()
        self._thread.start()
        _LOG.info("watching %s", self._root)

    def stop(self) -> None:
        """Stops the thread; the pins of queued checkpoints remain for the next run."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)  # the file system may hang

    def poll(self) -> None:
        """Lists `root` once, and pins and queues new checkpoints."""
        # Read before listing: a checkpoint that precedes the file is then in the listing.
        complete = (self._root / COMPLETE).exists()
        self._unsettled = False
        for checkpoint in self._listing(self._root):
            if checkpoint.identity not in self._seen and self._settled(checkpoint):
                self._enqueue(self._pinned(checkpoint))
        self._pin_queued()
        with self._changed:
            self._complete = complete and not self._unsettled
            self._changed.notify_all()

    def waiting(self) -> list[Checkpoint]:
        """Returns the queued checkpoints in the order in which they are to be validated."""
        with self._changed:
            return sorted(self._queue.values(), reverse=self._newest_first)

    def next(self, timeout: float) -> Checkpoint | None:
        """Returns the first checkpoint in the queue, waiting for one if it is empty.

        Args:
          timeout: The maximum time to wait, in seconds.

        Returns:
          None if the queue stays empty, or if no further checkpoint will come (`finished`).
        """
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._complete, timeout)
        return next(iter(self.waiting()), None)

    @property
    def finished(self) -> bool:
        """Whether the trainer has written its last checkpoint and the queue is empty."""
        with self._changed:
            return self._complete and not self._queue

    def need(self, items: Collection[str]) -> None:
        """Sets the items of a checkpoint to pin from now on; the others are left out."""
        self._pins.items = frozenset(items)

    def why_unpinned(self, checkpoint: Checkpoint) -> str:
        """Returns why a checkpoint was not pinned; empty if it was."""
        return self._unpinned.get(checkpoint.identity, "")

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint from the queue; its pin remains."""
        with self._changed:
            self._queue.pop(checkpoint.identity, None)

    def done(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint from the queue, and removes its pin."""
        self.set_aside(checkpoint)
        self._unpinned.pop(checkpoint.identity, None)
        self._pins.release(checkpoint)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._try_to_poll()

    def _try_to_poll(self) -> None:
        try:
            self.poll()
        except Exception as error:  # cloud clients have their own types of errors
            _LOG.warning("cannot list %s, next attempt follows: %s", self._root, error)

    def _settled(self, checkpoint: Checkpoint) -> bool:
        """Returns whether a listed checkpoint is complete, and not one that is being deleted.

        A checkpoint whose metadata file is already deleted looks like one of old Orbax. Those
        never had such a file, and do not change between two listings.
        """
        if checkpoint.stamped:
            self._stamped.add(checkpoint.name)
            return True
        now = checkpoint.commit_ns, files(checkpoint.path)
        before = self._unstamped.get(checkpoint.name)
        self._unstamped[checkpoint.name] = now
        self._unsettled |= now != before
        return checkpoint.name not in self._stamped and now == before

    def _enqueue(self, checkpoint: Checkpoint) -> None:
        with self._changed:
            self._seen.add(checkpoint.identity)
            self._queue[checkpoint.identity] = checkpoint
            self._changed.notify_all()

    def _pin_queued(self) -> None:
        """Pins queued checkpoints that could not be pinned before, as the limit was reached."""
        for checkpoint in self.waiting():
            if checkpoint.pin is None and not self._no_links:
                pinned = self._pinned(checkpoint)
                with self._changed:
                    if checkpoint.identity in self._queue:
                        self._queue[checkpoint.identity] = pinned
                    else:  # removed from the queue in the meantime
                        self._pins.release(checkpoint)

    def _pinned(self, checkpoint: Checkpoint) -> Checkpoint:
        """Returns the checkpoint with its pin, or as it is if it cannot be pinned."""
        if self._no_links:
            self._unpinned[checkpoint.identity] = self._no_links
            return checkpoint
        try:
            pinned = self._pins.take(checkpoint)
        except (PinLimitReached, VanishedError, OSError) as error:
            self._note_unpinned(checkpoint, error)
            return checkpoint
        self._unpinned.pop(checkpoint.identity, None)
        return pinned

    def _note_unpinned(self, checkpoint: Checkpoint, error: Exception) -> None:
        """Logs and keeps the reason why a checkpoint is not pinned."""
        if isinstance(error, LinksUnsupported):
            self._no_links = str(error)
            _LOG.warning(
                "checkpoints cannot be pinned (%s): they are read where the trainer wrote them,"
                " as early as host memory allows. Set `pin_dir` to a directory on their file"
                " system",
                error,
            )
        elif checkpoint.identity not in self._unpinned:
            _LOG.warning("step %d is not pinned: %s", checkpoint.step, error)
        # Only the first reason counts: the trainer may delete the checkpoint afterwards.
        self._unpinned.setdefault(checkpoint.identity, str(error))
