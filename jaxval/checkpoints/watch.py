"""The watcher: a thread that sees each checkpoint commit, pins it and keeps it in line.

It starts before JAX is imported, which takes seconds in which a trainer that keeps two
checkpoints may delete one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from etils import epath

from jaxval.checkpoints.commit import COMPLETE, committed, files
from jaxval.checkpoints.pins import Pins
from jaxval.errors import VanishedError
from jaxval.records import Checkpoint

_LOG = logging.getLogger(__name__)

Listing = Callable[[epath.PathLike], list[Checkpoint]]


class Watcher:
    """Lists `root` every `interval` seconds; each new commit is pinned and stands in line.

    A checkpoint leaves the line with `done`. One that cannot be pinned stands in line all
    the same, to be read where the trainer wrote it.
    """

    def __init__(
        self,
        root: str,
        pin_dir: Path,
        *,
        interval: float,
        listing: Listing = committed,
    ):
        self._root = epath.Path(root)
        self._pins = Pins(pin_dir)
        self._interval = interval
        self._listing = listing
        self._seen: set[tuple[str, int]] = set()
        self._line: dict[tuple[str, int], Checkpoint] = {}
        self._stamped: set[str] = set()
        self._unstamped: dict[str, list[str]] = {}
        self._unsettled = False
        self._complete = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._links_refused = False
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Takes up what an earlier run left pinned, lists once, then goes on in the back."""
        for checkpoint in self._pins.left_behind(self._root):
            self._enqueue(checkpoint)
        self.poll()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; the pins of what is still in line remain for the next run."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def poll(self) -> None:
        """One listing. New commits are pinned at once, oldest step first."""
        # Read before listing: a checkpoint that precedes the file is then in the listing.
        complete = (self._root / COMPLETE).exists()
        self._unsettled = False
        for checkpoint in self._listing(self._root):
            if checkpoint.identity not in self._seen and self._settled(checkpoint):
                self._enqueue(self._pin(checkpoint))
        with self._changed:
            self._complete = complete and not self._unsettled
            self._changed.notify_all()

    def next(self, timeout: float) -> Checkpoint | None:
        """The waiting checkpoint of the lowest step; None if none came within `timeout` s
        or none can come any more (`finished`)."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._complete, timeout)
            return min(self._line.values(), default=None)

    @property
    def backlog(self) -> int:
        """How many checkpoints stand in line."""
        return len(self._line)

    @property
    def finished(self) -> bool:
        """Whether the trainer has said that it is done, and nothing stands in line."""
        with self._changed:
            return self._complete and not self._line

    def done(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint out of the line and releases its pin."""
        with self._changed:
            self._line.pop(checkpoint.identity, None)
        self._pins.release(checkpoint)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.poll()
            except OSError as error:  # a network file system that hiccups must not end it
                _LOG.warning("cannot list %s, will try again: %s", self._root, error)
                time.sleep(self._interval)

    def _settled(self, checkpoint: Checkpoint) -> bool:
        """Whether it is a checkpoint, and not the rest of one that is being deleted.

        Without its metadata such a rest looks like a checkpoint of old Orbax. Those never
        had metadata, and stay the same from one listing to the next.
        """
        if checkpoint.stamped:
            self._stamped.add(checkpoint.name)
            return True
        now = files(checkpoint.path)
        before = self._unstamped.get(checkpoint.name)
        self._unstamped[checkpoint.name] = now
        self._unsettled |= now != before
        return checkpoint.name not in self._stamped and now == before

    def _enqueue(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        with self._changed:
            self._seen.add(checkpoint.identity)
            self._line[checkpoint.identity] = checkpoint
            self._changed.notify_all()

    def _pin(self, checkpoint: Checkpoint) -> Checkpoint | None:
        try:
            return self._pins.take(checkpoint)
        except VanishedError as error:
            _LOG.warning("step %d is lost: %s", checkpoint.step, error)
            return None
        except OSError as error:
            self._warn_unpinned(error)
            return checkpoint

    def _warn_unpinned(self, error: OSError) -> None:
        if not self._links_refused:
            _LOG.warning(
                "checkpoints cannot be pinned (%s): they are read where the trainer wrote"
                " them, and are lost if it deletes them first. A --pin_dir on the"
                " checkpoints' own file system helps",
                error,
            )
        self._links_refused = True
