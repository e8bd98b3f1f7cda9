"""Reads a ledger while its run may still write it, without a lock and without a new file.

SQLite's own readers take a lock, which can make the writer wait. This one opens the file as
immutable and reads again if a transaction was committed meanwhile. It relies on the rollback
journal that the ledger uses: the journal exists while the file is written, and a commit
increments the change counter in the file's header (https://sqlite.org/fileformat2.html).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from jaxval.errors import UserError
from jaxval.results.result import Result

if TYPE_CHECKING:
    import numpy as np

Value = TypeVar("Value")

_TRIES = 40
_PAUSE = 0.05  # seconds between two tries
_COUNTER = slice(24, 28)  # of the change counter in the header


@dataclass(frozen=True)
class Row:
    """A row of the ledger.

    Attributes:
      id: Its key.
      result: The validation, without per-query values.
    """

    id: int
    result: Result


class LedgerReader:
    """Reads a ledger. What a method returns is the content after one commit.

    Args:
      path: The ledger's file.
    """

    def __init__(self, path: Path):
        self._path = path

    def rows(self) -> list[Row]:
        """Returns every validation, in the order in which they were committed."""
        return self._query(_rows)

    def failures(self) -> list[dict[str, Any]]:
        """Returns every failure as a dictionary of its columns, in the order of the rows."""
        return self._query(
            lambda db: [
                dict(row)
                for row in db.execute(
                    "SELECT step, name, reason, message, series, dataset, finished"
                    " FROM failure JOIN series ON digest = series ORDER BY id"
                )
            ]
        )

    def settings(self) -> dict[str, dict[str, Any]]:
        """Returns the settings of every series, by its digest."""
        return self._query(
            lambda db: {
                row["digest"]: json.loads(row["settings"])
                for row in db.execute("SELECT digest, settings FROM series")
            }
        )

    def query_ids(self, series: str) -> list[str]:
        """Returns the ids of a series' queries, in the order of the per-query values."""

        def read(db: sqlite3.Connection) -> list[str]:
            sql = "SELECT query_ids FROM series WHERE digest = ?"
            return list(json.loads(db.execute(sql, (series,)).fetchone()["query_ids"]))

        return self._query(read)

    def per_query(self, validation: int, measure: str) -> np.ndarray:
        """Returns one measure of one validation, [queries] float64."""
        import numpy as np

        def read(db: sqlite3.Connection) -> bytes:
            sql = "SELECT per_query FROM measure WHERE validation = ? AND name = ?"
            return bytes(db.execute(sql, (validation, measure)).fetchone()["per_query"])

        return np.frombuffer(self._query(read), "<f8")

    def _query(self, query: Callable[[sqlite3.Connection], Value]) -> Value:
        """Returns what `query` reads, once no transaction was committed meanwhile."""
        for _ in range(_TRIES):
            before = self._stamp()
            if before is not None:
                with contextlib.suppress(sqlite3.DatabaseError), _opened(self._path) as db:
                    value = query(db)
                    if self._stamp() == before:
                        return value
            time.sleep(_PAUSE)
        return self._query_copy(query)

    def _query_copy(self, query: Callable[[sqlite3.Connection], Value]) -> Value:
        """Reads from a copy, in which SQLite rolls back what a killed run left behind."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, self._path.name)
            journal = self._journal()
            if journal.exists():
                shutil.copyfile(journal, copy.with_name(journal.name))
            shutil.copyfile(self._path, copy)
            try:
                with contextlib.closing(sqlite3.connect(copy)) as db:
                    db.row_factory = sqlite3.Row
                    return query(db)
            except sqlite3.DatabaseError as error:
                raise UserError(
                    f"{self._path} cannot be read as a ledger ({error}): check that it was"
                    " written by jaxval, and that this jaxval is not older"
                ) from error

    def _stamp(self) -> tuple[bytes, int] | None:
        """Returns what changes with every commit; None while a transaction is being written."""
        try:
            if self._journal().exists():
                return None
            with self._path.open("rb") as file:
                counter = file.read(_COUNTER.stop)[_COUNTER]
            return counter, self._path.stat().st_size
        except FileNotFoundError:
            raise UserError(
                f"{self._path.parent} has no {self._path.name}: name the output_dir of a run"
            ) from None

    def _journal(self) -> Path:
        return self._path.with_name(self._path.name + "-journal")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        db.row_factory = sqlite3.Row
        yield db


def _rows(db: sqlite3.Connection) -> list[Row]:
    measures: dict[int, list[sqlite3.Row]] = {}
    columns = "validation, name, mean, low, high, p_value"
    for measure in db.execute(f"SELECT {columns} FROM measure ORDER BY rowid"):
        measures.setdefault(measure["validation"], []).append(measure)
    validations = db.execute(
        "SELECT validation.*, dataset FROM validation JOIN series ON digest = series"
        " ORDER BY id"
    )
    return [_row(row, measures.get(row["id"], [])) for row in validations]


def _row(row: sqlite3.Row, measures: list[sqlite3.Row]) -> Row:
    result = Result(
        dataset=row["dataset"],
        measures={m["name"]: _number(m["mean"]) for m in measures},
        intervals={m["name"]: (_number(m["low"]), _number(m["high"])) for m in measures},
        step=row["step"],
        checkpoint=row["checkpoint"],
        commit_ns=row["commit_ns"],
        params_at=row["params_at"],
        passages=row["passages"],
        queries=row["queries"],
        seconds=json.loads(row["seconds"]),
        series=row["series"],
        against=row["against"],
        p_values={m["name"]: m["p_value"] for m in measures if m["p_value"] is not None},
        finished=row["finished"],
    )
    return Row(row["id"], result)


def _number(value: float | None) -> float:
    """Returns a column's number; SQLite holds NaN as NULL."""
    return float("nan") if value is None else float(value)
