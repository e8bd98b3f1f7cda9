"""The watcher: a thread that sees each checkpoint commit, pins it and keeps it in line.

It starts before JAX is imported, which takes seconds in which a trainer that keeps two
checkpoints may delete one.
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
from jaxval.records import Checkpoint, PinLimit

_LOG = logging.getLogger(__name__)

_PATIENCE = 10.0
_NO_LIMIT = PinLimit()

Listing = Callable[[epath.PathLike], list[Checkpoint]]
Identity = tuple[str, int]


class Watcher:
    """Lists `root` every `interval` seconds; each new commit stands in line and is pinned.

    A checkpoint leaves the line with `done`. One that cannot be pinned stands in line all
    the same, to be read where the trainer wrote it.

    Args:
      root: the trainer's directory, which is only read.
      pin_dir: where the pins are made.
      interval: seconds between two listings.
      limit: of what may be pinned.
      newest_first: hands out the highest step first, not the lowest.
      listing: lists the committed checkpoints of a directory.

    Attributes:
      left_behind: those that an earlier run had pinned and not validated.
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
        self._line: dict[Identity, Checkpoint] = {}
        self._unpinned: dict[Identity, str] = {}
        self._links_refused = ""
        self._stamped: set[str] = set()
        self._unstamped: dict[str, tuple[int, list[str]]] = {}
        self._unsettled = False
        self._complete = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Takes up what an earlier run left pinned, lists once, then goes on in the back."""
        self.left_behind = tuple(self._pins.left_behind(self._root))
        for checkpoint in self.left_behind:
            self._enqueue(checkpoint)
        self._try_to_poll()
        self._thread.start()
        _LOG.info("watching %s", self._root)

    def stop(self) -> None:
        """Ends the thread; the pins of what is still in line remain for the next run."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)  # a listing that hangs must not keep us

    def poll(self) -> None:
        """One listing. New commits stand in line, and are pinned at once, as far as allowed."""
        # Read before listing: a checkpoint that precedes the file is then in the listing.
        complete = (self._root / COMPLETE).exists()
        self._unsettled = False
        for checkpoint in self._listing(self._root):
            if checkpoint.identity not in self._seen and self._settled(checkpoint):
                self._enqueue(self._pinned(checkpoint))
        self._pin_those_at_the_limit()
        with self._changed:
            self._complete = complete and not self._unsettled
            self._changed.notify_all()

    def waiting(self) -> list[Checkpoint]:
        """Those in line, in the order in which they are to be validated."""
        with self._changed:
            return sorted(self._line.values(), reverse=self._newest_first)

    def next(self, timeout: float) -> Checkpoint | None:
        """The first of those waiting; None if none came within `timeout` s or none can come
        any more (`finished`).
        """
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._complete, timeout)
        return next(iter(self.waiting()), None)

    @property
    def finished(self) -> bool:
        """Whether the trainer has said that it is done, and nothing stands in line."""
        with self._changed:
            return self._complete and not self._line

    def need(self, items: Collection[str]) -> None:
        """Says which items of a checkpoint are needed: later pins leave out the others."""
        self._pins.items = frozenset(items)

    def why_unpinned(self, checkpoint: Checkpoint) -> str:
        """Why a checkpoint was not pinned; empty if it was."""
        return self._unpinned.get(checkpoint.identity, "")

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint out of the line; its pin remains."""
        with self._changed:
            self._line.pop(checkpoint.identity, None)

    def done(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint out of the line and releases its pin."""
        self.set_aside(checkpoint)
        self._unpinned.pop(checkpoint.identity, None)
        self._pins.release(checkpoint)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._try_to_poll()

    def _try_to_poll(self) -> None:
        try:
            self.poll()
        except Exception as error:  # a cloud client raises what it likes; watching goes on
            _LOG.warning("cannot list %s, will try again: %s", self._root, error)

    def _settled(self, checkpoint: Checkpoint) -> bool:
        """Whether it is a checkpoint, and not the rest of one that is being deleted.

        Without its metadata such a rest looks like a checkpoint of old Orbax. Those never
        had metadata, and stay the same from one listing to the next.
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
            self._line[checkpoint.identity] = checkpoint
            self._changed.notify_all()

    def _pin_those_at_the_limit(self) -> None:
        """Room may have come since they were seen."""
        for checkpoint in self.waiting():
            if checkpoint.pin is None and not self._links_refused:
                pinned = self._pinned(checkpoint)
                with self._changed:
                    if checkpoint.identity in self._line:
                        self._line[checkpoint.identity] = pinned
                    else:  # it was done in the meantime
                        self._pins.release(checkpoint)

    def _pinned(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with its pin, or as it is: whoever reads it finds out the rest."""
        if self._links_refused:
            self._unpinned[checkpoint.identity] = self._links_refused
            return checkpoint
        try:
            pinned = self._pins.take(checkpoint)
        except (PinLimitReached, VanishedError, OSError) as error:
            self._say_unpinned(checkpoint, error)
            return checkpoint
        self._unpinned.pop(checkpoint.identity, None)
        return pinned

    def _say_unpinned(self, checkpoint: Checkpoint, error: Exception) -> None:
        if isinstance(error, LinksUnsupported):
            self._links_refused = str(error)
            _LOG.warning(
                "checkpoints cannot be pinned (%s): they are read where the trainer wrote them,"
                " as early as host memory allows. A `pin_dir` on their file system helps",
                error,
            )
        elif checkpoint.identity not in self._unpinned:
            _LOG.warning("step %d is not pinned: %s", checkpoint.step, error)
        # The first reason: when it is tried again, the trainer may have deleted it.
        self._unpinned.setdefault(checkpoint.identity, str(error))
