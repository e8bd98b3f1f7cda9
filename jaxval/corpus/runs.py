"""Reads run files: the passages that a system retrieved for each query, by rank."""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxval.corpus.readers import fields, lines
from jaxval.errors import DataError

Candidates = Mapping[str, tuple[str, ...]]
"""query id -> passage ids, best first, without duplicates."""

_FORMS = {3: "'query document rank'", 6: "'query Q0 document rank score tag'"}
_RANK = re.compile(r"[+-]?[0-9]{1,18}")
_Top = list[tuple[int, int, str]]
"""A heap of (-rank, -line number, passage id), with the worst passage on top."""


@dataclass(frozen=True)
class Run:
    """The rankings of a run file for the queries that it was read for.

    Attributes:
      path: The file.
      hits: Query id -> the highest ranked passages. Queries that the file lacks are absent.
      others: Number of other queries in the file.
    """

    path: Path
    hits: Candidates
    others: int


def of_another_corpus(run: object, named: Collection[str], corpus: object) -> DataError:
    """Returns the error for a run without a passage of the corpus.

    Args:
      run: The run's file or setting, for the message.
      named: Ids of the run's passages.
      corpus: The corpus, for the message.
    """
    return DataError(
        f"{run}: none of the passages it names ({min(named)!r}, …) is in {corpus}:"
        " name a run of this corpus"
    )


def read_run(path: Path, depth: int, queries: Collection[str]) -> Run:
    """Reads the `depth` highest ranked passages of each query.

    Every line is `query Q0 document rank score tag` (TREC), or every line is `query document
    rank` (MS MARCO). Columns are separated by tabs or by blanks. Lines need not be sorted.
    The rank column decides, and the order of the lines among equal ranks; in a sorted file
    these are the first `depth` lines of each query, as Asyncval's splitter takes them. A
    passage that occurs twice for a query counts twice. Memory holds queries x depth passages.

    Args:
      path: The file, plain or .gz.
      depth: Number of passages of each query.
      queries: Ids of the queries to keep.

    Raises:
      DataError: A line cannot be used, there is no line, or no line is of these queries.
    """
    tops: dict[str, _Top] = {}
    others: set[str] = set()
    for number, (query, passage, rank) in _ranked(path):
        if query in queries:
            _push(tops.setdefault(query, []), (-rank, -number, passage), depth)
        else:
            others.add(query)
    if not tops:
        raise _unusable(path, queries, others)
    return Run(path, {query: _best_first(top) for query, top in tops.items()}, len(others))


def _push(top: _Top, ranked: tuple[int, int, str], depth: int) -> None:
    if len(top) < depth:
        heapq.heappush(top, ranked)
    else:
        heapq.heappushpop(top, ranked)


def _best_first(top: _Top) -> tuple[str, ...]:
    return tuple(dict.fromkeys(passage for _, _, passage in sorted(top, reverse=True)))


def _ranked(path: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
    """Yields (line number, (query, passage, rank))."""
    width = 0
    for number, line in lines(path):
        columns = fields(line, _FORMS)
        width = width or len(columns)
        try:
            yield number, _entry(columns, width)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from error


def _entry(columns: list[str], width: int) -> tuple[str, str, int]:
    if len(columns) != width or width not in _FORMS:
        form = _FORMS.get(width, " or ".join(_FORMS.values()))
        raise ValueError(f"{len(columns)} columns: write each line as {form}")
    query = columns[0]
    passage, rank = columns[2:4] if width == 6 else columns[1:3]
    if not (query and passage):
        raise ValueError(f"an empty id: write each line as {_FORMS[width]}")
    if not _RANK.fullmatch(rank):
        raise ValueError(f"{rank!r} is not a rank: write an integer, 1 for the best")
    return query, passage, int(rank)


def _unusable(path: Path, queries: Collection[str], others: set[str]) -> DataError:
    if not others:
        return DataError(f"{path}: no line in it: write lines of {_FORMS[6]}")
    other, judged = min(others), next(iter(queries))
    return DataError(
        f"{path}: none of its queries ({other!r}, …) is among the judged queries"
        f" ({judged!r}, …): name a run of these queries"
    )
