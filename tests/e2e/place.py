"""A directory with the tiny world's texts, a trainer's checkpoints and jaxval's output.

The test is the trainer: it saves, damages and deletes checkpoints.
"""

import contextlib
import json
import shutil
import sqlite3
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.e2e import world

METADATA = "_CHECKPOINT_METADATA"


class Place:
    """The files around one run.

    Attributes:
      root: The directory that holds all others.
      checkpoints: The trainer's directory. It does not exist before the first checkpoint.
      output: The output directory of jaxval.
      texts: The validation set, a BEIR folder.
      tokenizer: The tokenizer's folder.
    """

    def __init__(self, root):
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.output = root / "out"
        self.texts = world.write_texts(root / "texts")
        self.tokenizer = world.write_tokenizer(root / "tokenizer")

    def stage(self, step, tree):
        """Saves a checkpoint outside the trainer's directory and returns its path."""
        staged = self.root / "staging" / str(step)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(staged, tree, force=True)
        return staged

    def save(self, step, tree, spoil=lambda path: None):
        """Saves a checkpoint with one rename; `spoil` changes its files before."""
        staged = self.stage(step, tree)
        spoil(staged)
        self.delete(step)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        return staged.rename(self.checkpoints / str(step))

    def put(self, *steps, values=None, spoil=lambda path: None):
        """Saves checkpoints of the tiny world, by default with each step's own values."""
        for step in steps:
            table = world.table(step) if values is None else values
            self.save(step, tower_tree(table), spoil)

    def delete(self, *steps):
        for step in steps:
            shutil.rmtree(self.checkpoints / str(step), ignore_errors=True)

    def complete(self):
        """Marks the training as complete."""
        (self.checkpoints / "train_complete").touch()

    def query(self, sql):
        """Returns rows of the ledger."""
        with contextlib.closing(sqlite3.connect(self.output / "ledger.sqlite")) as db:
            return db.execute(sql).fetchall()

    def steps(self, table="validation"):
        """Returns the steps of a table of the ledger, in the order of their commits."""
        try:
            return [step for (step,) in self.query(f"SELECT step FROM {table} ORDER BY id")]
        except sqlite3.OperationalError:  # the table does not exist yet
            return []

    def failures(self):
        """Returns step -> (reason, message) of the failures in the ledger."""
        rows = self.query("SELECT step, reason, message FROM failure")
        return {step: (reason, message) for step, reason, message in rows}

    def reasons(self):
        """Returns step -> reason of the failures in the ledger."""
        return {step: reason for step, (reason, _) in self.failures().items()}

    def lines(self):
        """Returns the objects in metrics.jsonl."""
        text = (self.output / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def pins(self):
        """Returns the names of the pins."""
        return sorted(path.name for path in (self.output / "pins").iterdir())

    def check(self, *steps):
        """Checks that these steps were validated, in this order, each with its own values.

        The ledger and metrics.jsonl must agree.
        """
        assert self.steps() == list(steps)
        lines = self.lines()
        assert [line["step"] for line in lines] == list(steps)
        for line in lines:
            value = np.mean(world.expected(line["step"]))
            assert line["measures"]["RR@10"] == pytest.approx(value)


def tower_tree(table):
    """Returns the tree of a checkpoint with this table of word vectors."""
    return {"params": {"words": {"embedding": table}}}


def restamp(path, commit_ns):
    """Changes the commit time in the metadata of a checkpoint."""
    metadata = json.loads((path / METADATA).read_text())
    metadata["commit_timestamp_nsecs"] = commit_ns
    (path / METADATA).write_text(json.dumps(metadata))


def cut(path):
    """Truncates every data file of a checkpoint, and returns a function that undoes it."""
    contents = {file: file.read_bytes() for file in path.rglob("d/*") if file.is_file()}
    for file, content in contents.items():
        file.write_bytes(content[:20])
    return lambda: [file.write_bytes(content) for file, content in contents.items()]


def until(condition, process, seconds=60):
    """Waits until a condition holds while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended"
        assert time.monotonic() < end, "timeout"
        time.sleep(0.02)


def fill(disk, leave):
    """Fills a disk, except for a number of MiB, and returns the file that fills it."""
    ballast = Path(disk, "ballast")
    with ballast.open("wb") as file:
        free = shutil.disk_usage(disk).free
        file.write(bytes(free - int(leave * 2**20)))
    return ballast
