"""Runs of a session in this process, with its source, clock and sleep handed in."""

import contextlib
import dataclasses
import io
import logging

import jax
import pytest

from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.watcher import Watcher
from jaxval.config import Config, Evaluation, Model, Output, Search, Texts, Watching
from jaxval.errors import UserError
from jaxval.records import DatasetFiles
from jaxval.results.trackers import default_trackers
from jaxval.run import session
from tests.conftest import SilentBar
from tests.e2e import world
from tests.e2e.place import Place


class Clock:
    """A clock that tests advance."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Queue:
    """A source whose content a test decides.

    Args:
      checkpoints: The checkpoints in the queue.
      newest_first: Whether the highest step is next.
      left_behind: Checkpoints that an earlier run pinned. They are queued too.
      finished: Whether no more checkpoints come once the queue is empty.
      unpinned: Step -> why it is not pinned.
      clock: Advanced by each wait for a checkpoint that does not come.

    Attributes:
      done_steps: Steps that are done.
      aside_steps: Steps that were set aside.
      arrivals: Called, the first one and once each, when a wait finds the queue empty.
      items: The items that the session needs.
    """

    def __init__(
        self,
        checkpoints,
        *,
        newest_first=False,
        left_behind=(),
        finished=True,
        unpinned=None,
        clock=None,
    ):
        self.queue = [*left_behind, *checkpoints]
        self.left_behind = tuple(left_behind)
        self.done_steps, self.aside_steps, self.arrivals = [], [], []
        self.items = None
        self._newest_first = newest_first
        self._finished = finished
        self._unpinned = unpinned or {}
        self._clock = clock or Clock()

    def waiting(self):
        return sorted(self.queue, reverse=self._newest_first)

    def next(self, timeout):
        if not self.queue and self.arrivals:
            self.queue += self.arrivals.pop(0)()
        if not self.queue:
            self._clock.now += timeout
        return next(iter(self.waiting()), None)

    def done(self, checkpoint):
        self.done_steps.append(checkpoint.step)
        self._remove(checkpoint)

    def set_aside(self, checkpoint):
        self.aside_steps.append(checkpoint.step)
        self._remove(checkpoint)

    def need(self, items):
        self.items = items

    def why_unpinned(self, checkpoint):
        return self._unpinned.get(checkpoint.step, "")

    @property
    def finished(self):
        return self._finished and not self.queue and not self.arrivals

    def _remove(self, checkpoint):
        self.queue = [queued for queued in self.queue if queued != checkpoint]


class Runner(Place):
    """A place where sessions run in this process.

    Attributes:
      settings: Name -> value of each setting; the names are those of config's records.
      out: What the last run printed.
      log: What the last run logged.
    """

    def __init__(self, root):
        super().__init__(root)
        self.out = self.log = ""
        self.settings = {
            "checkpoint_dir": str(self.checkpoints),
            "pin_dir": self.output / "pins",
            "poll_interval": 0.02,
            "datasets": (dataset("tiny", self.texts),),
            "factory": "tests.e2e.world:encoder",
            "tokenizer": str(self.tokenizer),
            "token_dir": root / "tokens",
            "measures": ("RR@10", "nDCG@10"),
            "directory": self.output,
        }

    def queue(self, *, newest_first=False, **options):
        """Returns a source of the checkpoints that are committed now."""
        checkpoints = committed(self.checkpoints) if self.checkpoints.exists() else []
        return Queue(checkpoints, newest_first=newest_first, **options)

    def queue_of(self, checkpoints, **options):
        """Returns a source of these checkpoints."""
        return Queue(checkpoints, **options)

    def add_set(self, name, **texts):
        """Adds a validation set, with the texts that `world.write_texts` takes."""
        folder = world.write_texts(self.root / f"set-{name}", **texts)
        self.settings["datasets"] += (dataset(name, folder),)
        return folder

    def run(self, source=None, *, devices=2, trackers=default_trackers, **settings):
        """Runs a session to its end and returns its status.

        Args:
          source: Where the checkpoints come from; by default a queue of those that are
            committed now.
          devices: Number of devices.
          trackers: Makes the trackers.
          **settings: Changes to `settings`, and `clock` and `sleep`.
        """
        seams = {name: settings.pop(name) for name in ("clock", "sleep") if name in settings}
        config = make_config(self.settings | settings)
        config.output.directory.mkdir(parents=True, exist_ok=True)
        if source is None:
            newest_first = config.watching.order != "all"
            source = self.queue(newest_first=newest_first, clock=seams.get("clock"))
        with self.captured():
            return session.run(
                config,
                source,
                lambda: jax.devices()[:devices],
                trackers,
                progress=lambda label, total: SilentBar(),
                **seams,
            )

    def watch(self, *, devices=2, **settings):
        """Runs a session with a watcher, as the app does, and returns its status."""
        watcher = self.watcher(**settings)
        watcher.start()
        try:
            return self.run(watcher, devices=devices, **settings)
        finally:
            watcher.stop()

    def watcher(self, **settings):
        """Returns a watcher with these settings."""
        watching = make_config(self.settings | settings).watching
        return Watcher(
            watching.checkpoint_dir,
            watching.pin_dir,
            interval=watching.poll_interval,
            limit=watching.pin_limit,
            newest_first=watching.order != "all",
        )

    def refused(self, **settings):
        """Runs a session, which must raise a UserError, and returns its message."""
        with pytest.raises(UserError) as raised:
            self.run(**settings)
        return str(raised.value)

    @contextlib.contextmanager
    def captured(self):
        """Captures in `out` and `log` what is printed and logged."""
        out, log = io.StringIO(), io.StringIO()
        handler = logging.StreamHandler(log)
        logger = logging.getLogger("jaxval")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(out):
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            self.out, self.log = out.getvalue(), log.getvalue()


def make_config(settings):
    """Returns the Config with these settings: the names of its records' fields -> values."""
    rest = dict(settings)

    def fields_of(record):
        names = [field.name for field in dataclasses.fields(record) if field.name in rest]
        return {name: rest.pop(name) for name in names}

    model, texts, search = (record(**fields_of(record)) for record in (Model, Texts, Search))
    config = Config(
        Watching(**fields_of(Watching)),
        Evaluation(model=model, texts=texts, search=search, **fields_of(Evaluation)),
        Output(**fields_of(Output)),
    )
    assert not rest, f"no settings: {list(rest)}"
    return config


def dataset(name, folder):
    """Returns the files of a validation set in a BEIR folder."""
    return DatasetFiles(
        name, folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "test.tsv"
    )
