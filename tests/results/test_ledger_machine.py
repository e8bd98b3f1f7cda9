"""The ledger against a simple model of it, for random sequences of operations."""

import dataclasses
import itertools
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jaxval.records import Checkpoint, Failure, Standing, Validation
from jaxval.results.ledger import Ledger

DATASETS = {"s1": "dev", "s2": "other", "s3": "dev"}
QUERIES = ["q1", "q2"]
# Few, so that they repeat: a step has two names, and each has two commit times.
NAMES = [(1, "1"), (1, "checkpoint_1"), (2, "2")]
COMMITS = [0, 2**63 - 1]
REASONS = ["vanished", "corrupt", "skipped", "unseen"]

series = st.sampled_from(sorted(DATASETS))
checkpoints = st.builds(
    lambda named, commit_ns: Checkpoint(*named, commit_ns, Path("/run", named[1])),
    st.sampled_from(NAMES),
    st.sampled_from(COMMITS),
)
values = st.lists(st.floats(0, 1), min_size=len(QUERIES), max_size=len(QUERIES))
failures = st.builds(
    Failure, checkpoints, series, st.sampled_from(REASONS), st.text(max_size=9)
)


class Torn(Mapping):
    """Per-query values that raise an error after the first measure."""

    def __init__(self, error):
        self._error = error

    def __iter__(self):
        return iter(["RR@10", "AP"])

    def __len__(self):
        return 2

    def __getitem__(self, name):
        if name == "AP":
            raise self._error
        return np.ones(len(QUERIES))


class Unwritable(np.ndarray):
    """An array that has a mean and cannot be converted to bytes."""

    def astype(self, *_, **__):
        raise MemoryError("cannot convert the array")


def validation(checkpoint, digest, numbers, against=None):
    names = ["RR@10", "AP"]
    return Validation(
        checkpoint=checkpoint,
        dataset=DATASETS[digest],
        series=digest,
        params_at="default/params",
        passages=3,
        queries=len(numbers),
        per_query={name: np.array(numbers) / n for n, name in enumerate(names, 1)},
        seconds={"restore": 1 / 3, "passages": numbers[0]},
        standing=Standing(
            intervals=dict.fromkeys(names, (numbers[0] / 3, 1.0)),
            against=against,
            p_values={} if against is None else {"AP": 1 / 7},
        ),
    )


def comparable(row):
    """Returns a row as a value that compares by its bits, without `pin` and `stamped`."""
    plain = dataclasses.asdict(dataclasses.replace(row, checkpoint=None))
    if isinstance(row, Validation):
        plain["per_query"] = [(n, v.tobytes()) for n, v in row.per_query.items()]
    checkpoint = row.checkpoint
    return plain, checkpoint.identity, checkpoint.step, str(checkpoint.path)


def key(row):
    return row.series, *row.checkpoint.identity


class LedgerMachine(RuleBasedStateMachine):
    """Compares the ledger with sets and lists: series, validations and failures."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "out", "ledger.sqlite")
        self.ledger = Ledger(self.path)
        self.opened = set()
        self.validations = []
        self.failures = []

    def teardown(self):
        self.ledger.close()
        self.folder.cleanup()

    @initialize(digests=st.sets(series, min_size=2))
    def begin(self, digests):
        for digest in sorted(digests):
            self.open_series(digest)

    @rule(digest=series)
    def open_series(self, digest):
        self.ledger.open_series(digest, DATASETS[digest], {"depth": 100}, QUERIES)
        self.opened.add(digest)

    @rule(checkpoint=checkpoints, digest=series, numbers=values, against=st.none() | st.just(7))
    def commit(self, checkpoint, digest, numbers, against):
        row = validation(checkpoint, digest, numbers, against)
        self._commit(self.ledger, row)

    @rule(checkpoint=checkpoints, digest=series, numbers=values)
    def commit_by_another(self, checkpoint, digest, numbers):
        other = Ledger(self.path)
        self._commit(other, validation(checkpoint, digest, numbers))
        other.close()

    def _commit(self, ledger, row):
        """A row of an unknown series is refused, and a second row of a checkpoint."""
        if row.series not in self.opened or key(row) in map(key, self.validations):
            with pytest.raises(sqlite3.IntegrityError):
                ledger.commit(row)
        else:
            ledger.commit(row)
            self.validations.append(row)

    @rule(
        checkpoint=checkpoints,
        digest=series,
        error=st.sampled_from([OSError("half-way"), KeyboardInterrupt(), SystemExit(143)]),
    )
    def commit_that_fails(self, checkpoint, digest, error):
        row = validation(checkpoint, digest, [1.0, 0.5])
        # It may be refused before it fails.
        with pytest.raises((type(error), sqlite3.IntegrityError)):
            self.ledger.commit(dataclasses.replace(row, per_query=Torn(error)))

    @rule(checkpoint=checkpoints, digest=series)
    def commit_that_cannot_be_converted(self, checkpoint, digest):
        row = validation(checkpoint, digest, [1.0, 0.5])
        torn = dict(row.per_query) | {"AP": np.ones(2).view(Unwritable)}
        with pytest.raises((MemoryError, sqlite3.IntegrityError)):
            self.ledger.commit(dataclasses.replace(row, per_query=torn))

    @rule(checkpoint=checkpoints, digest=series)
    def commit_without_a_comparison(self, checkpoint, digest):
        row = validation(checkpoint, digest, [1.0, 0.5])
        with pytest.raises(ValueError, match="compared"):
            self.ledger.commit(dataclasses.replace(row, standing=None))

    @rule(rows=st.lists(failures, max_size=4))
    def fail(self, rows):
        """Writes all or none; a failure that the ledger has already stays as it is."""
        if any(row.series not in self.opened for row in rows):
            with pytest.raises(sqlite3.IntegrityError):
                self.ledger.fail(rows)
            return
        self.ledger.fail(rows)
        for row in rows:
            if key(row) not in map(key, self.failures):
                self.failures.append(row)

    @rule(rows=st.lists(failures, min_size=1, max_size=3))
    def fail_with_an_unknown_series_last(self, rows):
        torn = [*rows, dataclasses.replace(rows[0], series="s9")]
        with pytest.raises(sqlite3.IntegrityError):
            self.ledger.fail(torn)

    @rule(digests=st.lists(series, unique=True))
    def remove_failures(self, digests):
        rest = [row for row in self.failures if row.series not in digests]
        assert self.ledger.remove_failures(digests) == len(self.failures) - len(rest)
        self.failures = rest

    @rule()
    def reopen(self):
        self.ledger.close()
        self.ledger = Ledger(self.path)

    @rule(digest=series)
    def kill_a_process_within_a_transaction(self, digest):
        """SQLite finds a transaction that never ended, as after a kill."""
        self.ledger.close()
        killed = sqlite3.connect(self.path, isolation_level=None)
        killed.execute("BEGIN IMMEDIATE")
        killed.execute("DELETE FROM failure")
        row = "99, ?, 1, '1', 1, '/run/1', 'corrupt', '', 0"
        killed.execute(f"INSERT INTO failure VALUES ({row})", (digest,))
        killed.close()
        self.ledger = Ledger(self.path)

    @invariant()
    def rows_equal_the_models(self):
        assert list(map(comparable, self.ledger.validations())) == list(
            map(comparable, self.validations)
        )
        assert list(map(comparable, self.ledger.failures())) == list(
            map(comparable, self.failures)
        )

    @invariant()
    def a_checkpoint_with_a_row_is_held_at_any_path(self):
        rows = set(map(key, [*self.validations, *self.failures]))
        for digest, (step, name), commit_ns in itertools.product(DATASETS, NAMES, COMMITS):
            moved = Checkpoint(step, name, commit_ns, Path("/moved"), pin=Path("/pin"))
            assert self.ledger.holds(moved, digest) == ((digest, name, commit_ns) in rows)

    @invariant()
    def each_validation_has_its_measures(self):
        with sqlite3.connect(self.path) as db:
            (count,) = db.execute("SELECT count(*) FROM measure").fetchone()
        db.close()
        assert count == 2 * len(self.validations)

    @invariant()
    def query_ids_are_those_of_the_series(self):
        for digest in self.opened:
            assert self.ledger.query_ids(digest) == QUERIES


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = hypothesis.settings(max_examples=50, stateful_step_count=30)
