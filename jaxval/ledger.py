"""The ledger: SQLite, the only truth about what was validated and with what result.

A result exists if and only if its row does. Everything else that jaxval writes can be
made again from here.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jaxval.records import Checkpoint, Validation

_MIGRATIONS = (
    """
    CREATE TABLE series (
      digest TEXT PRIMARY KEY,
      dataset TEXT NOT NULL,
      settings TEXT NOT NULL,   -- JSON: all that the digest was made of
      query_ids TEXT NOT NULL,  -- JSON list: the order of measure.per_query
      created REAL NOT NULL
    );
    CREATE TABLE validation (
      id INTEGER PRIMARY KEY,
      series TEXT NOT NULL REFERENCES series,
      step INTEGER NOT NULL,
      name TEXT NOT NULL,
      commit_ns INTEGER NOT NULL,
      checkpoint TEXT NOT NULL,
      params_at TEXT NOT NULL,
      passages INTEGER NOT NULL,
      queries INTEGER NOT NULL,
      seconds TEXT NOT NULL,    -- JSON: stage -> seconds
      finished REAL NOT NULL,
      UNIQUE (series, name, commit_ns)
    );
    CREATE TABLE measure (
      validation INTEGER NOT NULL REFERENCES validation,
      name TEXT NOT NULL,
      mean REAL NOT NULL,
      per_query BLOB NOT NULL,  -- little-endian float64, in the order of series.query_ids
      PRIMARY KEY (validation, name)
    );
    """,
)


class Ledger:
    """One SQLite file. Every write is one transaction."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA foreign_keys = ON")
        self._migrate()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextlib.contextmanager
    def _atomic(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _migrate(self) -> None:
        with self._atomic():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            for number, migration in enumerate(_MIGRATIONS[version:], start=version + 1):
                for statement in filter(str.strip, migration.split(";\n")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")

    def open_series(
        self, digest: str, dataset: str, settings: Mapping[str, Any], query_ids: Sequence[str]
    ) -> None:
        """Makes sure that the series of these settings stands in the ledger."""
        row = (digest, dataset, json.dumps(settings), json.dumps(list(query_ids)), time.time())
        with self._atomic():
            self._db.execute("INSERT OR IGNORE INTO series VALUES (?, ?, ?, ?, ?)", row)

    def holds(self, checkpoint: Checkpoint, series: str) -> bool:
        """Whether this checkpoint's result in this series is there."""
        found = self._db.execute(
            "SELECT 1 FROM validation WHERE series = ? AND name = ? AND commit_ns = ?",
            (series, *checkpoint.identity),
        )
        return found.fetchone() is not None

    def commit(self, validation: Validation) -> None:
        """Writes one validation with all its values, in one transaction."""
        checkpoint = validation.checkpoint
        row = (
            validation.series,
            checkpoint.step,
            checkpoint.name,
            checkpoint.commit_ns,
            str(checkpoint.path),
            validation.params_at,
            validation.passages,
            validation.queries,
            json.dumps(dict(validation.seconds)),
            time.time(),
        )
        with self._atomic():
            key = self._db.execute(
                "INSERT INTO validation (series, step, name, commit_ns, checkpoint, params_at,"
                " passages, queries, seconds, finished) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            self._db.executemany(
                "INSERT INTO measure VALUES (?, ?, ?, ?)",
                [
                    (key, name, float(values.mean()), values.astype("<f8").tobytes())
                    for name, values in validation.per_query.items()
                ],
            )

    def validations(self, series: Sequence[str] | None = None) -> list[Validation]:
        """Every validation, or those of some series, in the order they were committed."""
        rows = self._db.execute(
            "SELECT v.id, v.series, dataset, step, name, commit_ns, checkpoint, params_at,"
            " passages, queries, seconds FROM validation v JOIN series s ON s.digest = v.series"
            " ORDER BY v.id"
        ).fetchall()
        return [self._read(*row) for row in rows if series is None or row[1] in series]

    def query_ids(self, series: str) -> list[str]:
        """The queries of a series, in the order of its per-query values."""
        found = self._db.execute("SELECT query_ids FROM series WHERE digest = ?", (series,))
        return list(json.loads(found.fetchone()[0]))

    def _read(
        self,
        key: int,
        series: str,
        dataset: str,
        step: int,
        name: str,
        commit_ns: int,
        path: str,
        params_at: str,
        passages: int,
        queries: int,
        seconds: str,
    ) -> Validation:
        values = self._db.execute(
            "SELECT name, per_query FROM measure WHERE validation = ? ORDER BY rowid", (key,)
        )
        return Validation(
            checkpoint=Checkpoint(step, name, commit_ns, epath.Path(path)),
            dataset=dataset,
            series=series,
            params_at=params_at,
            passages=passages,
            queries=queries,
            per_query={name: np.frombuffer(blob, "<f8") for name, blob in values},
            seconds=json.loads(seconds),
        )
