"""The ledger: an SQLite file with the results of all validations.

A result exists if and only if its row does. metrics.jsonl, the TensorBoard files and
signals.json are rebuilt from the ledger.

Tables:
  series: one row per series. A series is a set together with all settings that its values
    depend on, and values compare only within a series.
      digest: identifies the series.
      dataset: the set's name.
      settings: JSON object, what the digest is computed from.
      query_ids: JSON list, the order of the values in `measure.per_query`.
      created: Unix time.
  validation: one row per checkpoint and series that has a result.
      series: the series' digest.
      step, name, commit_ns: of the checkpoint, see records.Checkpoint. Name and commit_ns
        identify it.
      checkpoint: the path at which the trainer wrote it.
      params_at: where in the checkpoint the parameters were found.
      passages: number of passages that were encoded.
      queries: number of queries that were judged.
      seconds: JSON object, stage -> wall-clock seconds.
      against: the step that was best in the series until then; NULL for the first.
      finished: Unix time.
  measure: one row per validation and measure, in the order of `measures`.
      validation: the validation's id.
      name: the measure's name.
      mean: mean over the queries; NULL if it is NaN.
      low, high: 95% interval of the mean.
      p_value: of a test against the step `validation.against`; NULL if there was none.
      per_query: little-endian float64, one value per query of the series.
  failure: one row per checkpoint and series that has no result, and why.
      series, step, name, commit_ns, checkpoint, finished: as in `validation`.
      reason: one word, see records.Failure.
      message: an explanation for people.

`PRAGMA user_version` is the version of this schema.
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
from jaxval.records import Checkpoint, Failure, Identity, Standing, Validation

_MIGRATIONS = (
    """
    CREATE TABLE series (
      digest TEXT PRIMARY KEY,
      dataset TEXT NOT NULL,
      settings TEXT NOT NULL,   -- JSON object: what the digest is computed from
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
      seconds TEXT NOT NULL,    -- JSON object: stage -> seconds
      against INTEGER,          -- step that was best in the series until then
      finished REAL NOT NULL,
      UNIQUE (series, name, commit_ns)
    );
    CREATE TABLE measure (
      validation INTEGER NOT NULL REFERENCES validation,
      name TEXT NOT NULL,
      mean REAL,                -- NULL if NaN
      low REAL,                 -- 95% interval of the mean
      high REAL,
      p_value REAL,             -- of a test against validation.against
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


_LOCK_TIMEOUT = 60.0  # seconds to wait while another process reads or writes


class Ledger:
    """An open ledger. Every write is one transaction.

    Args:
      path: The file, which is created if it does not exist, with its folder.

    Raises:
      UserError: The file is not a ledger, is from a newer jaxval, or cannot be written.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_TIMEOUT)
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
                    f" reads up to {len(_MIGRATIONS)}): install that version, or choose another"
                    " `output_dir`"
                )
            for number, migration in enumerate(_MIGRATIONS[version:], start=version + 1):
                for statement in filter(str.strip, migration.split(";\n")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")

    def open_series(
        self, digest: str, dataset: str, settings: Mapping[str, Any], query_ids: Sequence[str]
    ) -> None:
        """Adds a series, unless the ledger has it.

        Args:
          digest: Identifies the series.
          dataset: The set's name.
          settings: What the digest is computed from, as JSON holds it.
          query_ids: The order of the per-query values.
        """
        row = (digest, dataset, json.dumps(settings), json.dumps(list(query_ids)), time.time())
        with self._atomic():
            self._db.execute("INSERT OR IGNORE INTO series VALUES (?, ?, ?, ?, ?)", row)

    def settings(self, dataset: str) -> dict[str, dict[str, Any]]:
        """Returns digest -> settings of the series of a set that have a result.

        The series with the latest result comes last.
        """
        rows = self._rows(
            "SELECT digest, settings FROM series JOIN validation ON digest = series"
            " WHERE dataset = ? GROUP BY digest ORDER BY max(id)",
            dataset,
        )
        return {row["digest"]: json.loads(row["settings"]) for row in rows}

    def holds(self, checkpoint: Checkpoint, series: str) -> bool:
        """Returns whether a checkpoint has a row in a series, a result or a failure."""
        cursor = self._db.execute(
            "SELECT 1 FROM validation WHERE series = :s AND name = :n AND commit_ns = :c"
            " UNION SELECT 1 FROM failure WHERE series = :s AND name = :n AND commit_ns = :c",
            {"s": series, "n": checkpoint.name, "c": checkpoint.commit_ns},
        )
        return cursor.fetchone() is not None

    def commit(self, validation: Validation, failures: Sequence[Failure] = ()) -> None:
        """Writes a validation with its values, in one transaction.

        Args:
          validation: The validation. Its series is in the ledger.
          failures: Failures that follow from it, which the same transaction writes.
        """
        if validation.standing is None:
            raise ValueError("a validation must be compared before it is committed")
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
        """Writes failures, all or none. One that the ledger has already stays as it is."""
        with self._atomic():
            self._insert_failures(failures)

    def remove_failures(
        self,
        series: Sequence[str],
        among: Collection[Identity] | None = None,
        *,
        keep: Collection[str] = (),
    ) -> int:
        """Removes failures, so that their checkpoints are tried again.

        Args:
          series: Digests of the series.
          among: Identities of the checkpoints; None for all checkpoints.
          keep: Reasons; failures for these reasons are kept.

        Returns:
          The number of failures that were removed.
        """
        with self._atomic():
            failures = [
                row
                for row in self._rows("SELECT * FROM failure")
                if row["series"] in series
                and row["reason"] not in keep
                and (among is None or _checkpoint(row).identity in among)
            ]
            return self._delete(failures)

    def reopen(
        self, reason: str, series: str, without: str, among: Collection[Identity]
    ) -> int:
        """Removes failures of checkpoints that have no result in another series.

        Args:
          reason: The failures' reason.
          series: Digest of the failures' series.
          without: Digest of the other series.
          among: Identities of the checkpoints.

        Returns:
          The number of failures that were removed.
        """
        with self._atomic():
            failures = [
                row
                for row in self._rows(
                    "SELECT * FROM failure WHERE reason = ? AND series = ? AND NOT EXISTS"
                    " (SELECT 1 FROM validation WHERE series = ? AND name = failure.name"
                    " AND commit_ns = failure.commit_ns)",
                    *(reason, series, without),
                )
                if _checkpoint(row).identity in among
            ]
            return self._delete(failures)

    def _delete(self, failures: Sequence[sqlite3.Row]) -> int:
        ids = [(row["id"],) for row in failures]
        self._db.executemany("DELETE FROM failure WHERE id = ?", ids)
        return len(ids)

    def validations(self) -> list[Validation]:
        """Returns all validations, in the order in which they were committed."""
        rows = self._rows(
            "SELECT validation.*, dataset FROM validation"
            " JOIN series ON series.digest = series ORDER BY id"
        )
        return [self._read(row) for row in rows]

    def failures(self) -> list[Failure]:
        """Returns all failures, in the order in which they were committed."""
        return [
            Failure(_checkpoint(row), row["series"], row["reason"], row["message"])
            for row in self._rows("SELECT * FROM failure ORDER BY id")
        ]

    def query_ids(self, series: str) -> list[str]:
        """Returns the ids of a series' queries, in the order of its per-query values."""
        cursor = self._db.execute("SELECT query_ids FROM series WHERE digest = ?", (series,))
        return list(json.loads(cursor.fetchone()[0]))

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
            intervals={
                measure["name"]: (measure["low"], measure["high"]) for measure in measures
            },
            against=row["against"],
            p_values={
                measure["name"]: measure["p_value"]
                for measure in measures
                if measure["p_value"] is not None
            },
        )
        return Validation(
            checkpoint=_checkpoint(row),
            dataset=row["dataset"],
            series=row["series"],
            params_at=row["params_at"],
            passages=row["passages"],
            queries=row["queries"],
            per_query={
                measure["name"]: np.frombuffer(measure["per_query"], "<f8")
                for measure in measures
            },
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
