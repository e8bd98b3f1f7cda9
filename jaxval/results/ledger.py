"""The ledger: SQLite, the only truth about what was validated and with what result.

A result exists if and only if its row does. Everything else that jaxval writes can be
made again from here.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jaxval.errors import UserError
from jaxval.records import Checkpoint, Failure, Standing, Validation

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
      against INTEGER,          -- the step that was best in the series until then
      finished REAL NOT NULL,
      UNIQUE (series, name, commit_ns)
    );
    CREATE TABLE measure (
      validation INTEGER NOT NULL REFERENCES validation,
      name TEXT NOT NULL,
      mean REAL,                -- NULL if it is NaN
      low REAL,                 -- 95% interval of the mean
      high REAL,
      p_value REAL,             -- of no difference from validation.against
      per_query BLOB NOT NULL,  -- little-endian float64, in the order of series.query_ids
      PRIMARY KEY (validation, name)
    );
    CREATE TABLE failure (
      id INTEGER PRIMARY KEY,
      series TEXT NOT NULL REFERENCES series,
      step INTEGER NOT NULL,
      name TEXT NOT NULL,
      commit_ns INTEGER NOT NULL,
      checkpoint TEXT NOT NULL,
      reason TEXT NOT NULL,
      message TEXT NOT NULL,
      finished REAL NOT NULL,
      UNIQUE (series, name, commit_ns)
    );
    """,
)


_PATIENCE = 60.0  # seconds for a reader to let go of the file


class Ledger:
    """One SQLite file. Every write is one transaction."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate()
        except sqlite3.DatabaseError as error:
            remedy = "make room" if "full" in str(error) else "move it away"
            raise UserError(
                f"{path} cannot be used as a ledger ({error}): {remedy}, or choose another"
                " `output_dir`"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextlib.contextmanager
    def _atomic(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _migrate(self) -> None:
        with self._atomic():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(_MIGRATIONS):
                raise UserError(
                    f"the ledger was written by a newer jaxval (version {version}, this one"
                    f" knows {len(_MIGRATIONS)}): install that, or choose another `output_dir`"
                )
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

    def settings(self, dataset: str) -> dict[str, dict[str, Any]]:
        """The settings of every series of a set that has a result, the latest last."""
        rows = self._rows(
            "SELECT digest, settings FROM series JOIN validation ON digest = series"
            " WHERE dataset = ? GROUP BY digest ORDER BY max(id)",
            dataset,
        )
        return {row["digest"]: json.loads(row["settings"]) for row in rows}

    def holds(self, checkpoint: Checkpoint, series: str) -> bool:
        """Whether this checkpoint has its row in this series, a result or a failure."""
        found = self._db.execute(
            "SELECT 1 FROM validation WHERE series = :s AND name = :n AND commit_ns = :c"
            " UNION SELECT 1 FROM failure WHERE series = :s AND name = :n AND commit_ns = :c",
            {"s": series, "n": checkpoint.name, "c": checkpoint.commit_ns},
        )
        return found.fetchone() is not None

    def commit(self, validation: Validation, failures: Sequence[Failure] = ()) -> None:
        """Writes one validation with all its values, and failures that follow from it, in
        one transaction.
        """
        if validation.standing is None:
            raise ValueError("a validation is compared before it is committed")
        checkpoint, standing = validation.checkpoint, validation.standing
        row = {
            "series": validation.series,
            **_columns(checkpoint),
            "params_at": validation.params_at,
            "passages": validation.passages,
            "queries": validation.queries,
            "seconds": json.dumps(dict(validation.seconds)),
            "against": standing.against,
        }
        with self._atomic():
            key = self._insert("validation", row)
            for name, values in validation.per_query.items():
                low, high = standing.intervals[name]
                measure = {
                    "validation": key,
                    "name": name,
                    "mean": float(values.mean()),
                    "low": low,
                    "high": high,
                    "p_value": standing.p_values.get(name),
                    "per_query": values.astype("<f8").tobytes(),
                }
                self._insert("measure", measure)
            self._insert_failures(failures)

    def fail(self, failures: Sequence[Failure]) -> None:
        """Writes failures, all or none; one that stands there already is left as it is."""
        with self._atomic():
            self._insert_failures(failures)

    def forget_failures(
        self,
        series: Sequence[str],
        among: Collection[tuple[str, int]] | None = None,
        *,
        but: Collection[str] = (),
    ) -> int:
        """Removes the failures of these series, so that they are tried again; how many.

        Args:
          series: digests.
          among: identities of checkpoints; only theirs are removed. None for all.
          but: reasons; failures of these stay.
        """
        with self._atomic():
            found = [
                row
                for row in self._rows("SELECT * FROM failure")
                if row["series"] in series
                and row["reason"] not in but
                and (among is None or _checkpoint(row).identity in among)
            ]
            return self._forget(found)

    def reopen(
        self, reason: str, series: str, without: str, among: Collection[tuple[str, int]]
    ) -> int:
        """Removes the failures of this reason in `series` whose checkpoints have no result in
        the series `without`; how many. Only checkpoints of the identities `among` are meant.
        """
        with self._atomic():
            found = [
                row
                for row in self._rows(
                    "SELECT * FROM failure WHERE reason = ? AND series = ? AND NOT EXISTS"
                    " (SELECT 1 FROM validation WHERE series = ? AND name = failure.name"
                    " AND commit_ns = failure.commit_ns)",
                    *(reason, series, without),
                )
                if _checkpoint(row).identity in among
            ]
            return self._forget(found)

    def _forget(self, failures: Sequence[sqlite3.Row]) -> int:
        ids = [(row["id"],) for row in failures]
        self._db.executemany("DELETE FROM failure WHERE id = ?", ids)
        return len(ids)

    def validations(self) -> list[Validation]:
        """Every validation, in the order they were committed."""
        rows = self._rows(
            "SELECT validation.*, dataset FROM validation"
            " JOIN series ON series.digest = series ORDER BY id"
        )
        return [self._read(row) for row in rows]

    def failures(self) -> list[Failure]:
        """Every failure, in the order they were committed."""
        return [
            Failure(_checkpoint(row), row["series"], row["reason"], row["message"])
            for row in self._rows("SELECT * FROM failure ORDER BY id")
        ]

    def query_ids(self, series: str) -> list[str]:
        """The queries of a series, in the order of its per-query values."""
        found = self._db.execute("SELECT query_ids FROM series WHERE digest = ?", (series,))
        return list(json.loads(found.fetchone()[0]))

    def _rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        return self._db.execute(sql, values).fetchall()

    def _insert(self, table: str, row: Mapping[str, object], conflict: str = "") -> int | None:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        sql = f"INSERT {conflict} INTO {table} ({names}) VALUES ({marks})"
        return self._db.execute(sql, tuple(row.values())).lastrowid

    def _insert_failures(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            row = {
                "series": failure.series,
                **_columns(failure.checkpoint),
                "reason": failure.reason,
                "message": failure.message,
            }
            self._insert("failure", row, "OR IGNORE")

    def _read(self, row: sqlite3.Row) -> Validation:
        measures = self._rows(
            "SELECT * FROM measure WHERE validation = ? ORDER BY rowid", row["id"]
        )
        standing = Standing(
            intervals={one["name"]: (one["low"], one["high"]) for one in measures},
            against=row["against"],
            p_values={
                one["name"]: one["p_value"] for one in measures if one["p_value"] is not None
            },
        )
        return Validation(
            checkpoint=_checkpoint(row),
            dataset=row["dataset"],
            series=row["series"],
            params_at=row["params_at"],
            passages=row["passages"],
            queries=row["queries"],
            per_query={one["name"]: np.frombuffer(one["per_query"], "<f8") for one in measures},
            seconds=json.loads(row["seconds"]),
            standing=standing,
        )


def _columns(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "step": checkpoint.step,
        "name": checkpoint.name,
        "commit_ns": checkpoint.commit_ns,
        "checkpoint": str(checkpoint.path),
        "finished": time.time(),
    }


def _checkpoint(row: sqlite3.Row) -> Checkpoint:
    path = epath.Path(row["checkpoint"])
    return Checkpoint(row["step"], row["name"], row["commit_ns"], path)
