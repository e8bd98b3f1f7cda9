"""A few queries and the passages that answer them: enough to see whether an encoder ranks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxval.corpus.token_store import Bucket, TokenStore
from jaxval.evaluation.plan import EvalSet
from jaxval.evaluation.search import FaissSearcher
from jaxval.metrics.measures import evaluate, parse
from jaxval.metrics.ranks import RowQrels
from jaxval.records import Hits

SIZE = 64
"""Queries, and passages."""

DEPTH = 10
MEASURE = f"nDCG@{DEPTH}"
"""By which it is seen whether they are ranked better than by chance."""

_MEASURES = parse([MEASURE], DEPTH)
_SHUFFLES = 200
_ENOUGH = 16  # queries, and passages: of fewer, chance alone makes a good ranking


@dataclass(frozen=True)
class Part:
    """Some texts of a store, in its widths, as a Tower encodes them. Their rows are 0, 1, …

    Attributes:
      store: the whole.
      positions: [count] int64, in it; ascending.
    """

    store: TokenStore
    positions: np.ndarray

    @property
    def count(self) -> int:
        """How many texts."""
        return len(self.positions)

    @functools.cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Those of the store that have any of these texts."""
        ends = [bucket.start + bucket.count for bucket in self.store.buckets]
        upto = [0, *np.searchsorted(self.positions, ends).tolist()]
        return tuple(
            Bucket(bucket.width, start, end - start)
            for bucket, start, end in zip(self.store.buckets, upto, upto[1:], strict=False)
            if end > start
        )

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[count] uint16."""
        return np.asarray(self.store.lengths[self.positions])

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[count] int64, 0, 1, …"""
        return np.arange(self.count)

    @property
    def places(self) -> np.ndarray:
        """[count] int64, the row of each in the store."""
        return np.asarray(self.store.rows[self.positions])

    def matrix(self, bucket: Bucket) -> np.ndarray:
        """[bucket.count, bucket.width] token ids."""
        (whole,) = [one for one in self.store.buckets if one.width == bucket.width]
        here = self.positions[bucket.start : bucket.start + bucket.count]
        return np.asarray(self.store.matrix(whole)[here - whole.start])


@dataclass(frozen=True)
class Sample:
    """A set made small.

    Attributes:
      queries, passages: SIZE of each, or as many as there are.
      query_ids: in the order of the queries' rows.
      qrels: over the passages' rows.
    """

    queries: Part
    passages: Part
    query_ids: tuple[str, ...]
    qrels: RowQrels


@dataclass(frozen=True)
class Ranking:
    """How well a sample is ranked.

    Attributes:
      values: [queries] MEASURE of each.
      chance: the mean of random rankings.
      luck: the highest mean of many random rankings; 1 where there are too few texts to tell
        a ranking from chance.
    """

    values: np.ndarray
    chance: float
    luck: float

    @property
    def mean(self) -> float:
        """Over the queries."""
        return float(self.values.mean())


def choose(judged: EvalSet, corpus: TokenStore, size: int = SIZE) -> Sample:
    """Queries from all over the set, and of each its best passage; then passages from all
    over the corpus, until there are `size`."""
    answers = _answers(judged)
    asked = _spread(np.array(list(answers) or range(judged.queries.count)), size)
    rows = {answers[number] for number in asked.tolist() if number in answers}
    others = _spread(np.arange(corpus.count), 2 * size)
    others = others[~np.isin(others, list(rows))]
    chosen = np.array([*rows, *_spread(others, size - len(rows))], np.int64)
    queries, passages = _part(judged.queries, asked), _part(corpus, chosen)
    ids = tuple(judged.query_ids[row] for row in queries.places)
    return Sample(queries, passages, ids, _among(passages, judged.qrels, ids))


def _answers(judged: EvalSet) -> dict[int, int]:
    """Row of a query -> that of its best passage, for those that have one in the corpus."""
    best = {number: _best(judged.qrels[id_]) for number, id_ in enumerate(judged.query_ids)}
    return {number: row for number, row in best.items() if row is not None}


def _among(passages: Part, qrels: RowQrels, query_ids: Sequence[str]) -> RowQrels:
    """The judgements of these passages, over the part's rows."""
    at = {str(row): str(place) for place, row in enumerate(passages.places)}
    return {
        query: {at[row]: grade for row, grade in qrels[query].items() if row in at}
        for query in query_ids
    }


def rank(
    sample: Sample, queries: np.ndarray, passages: np.ndarray, similarity: str, dtype: str
) -> Ranking | None:
    """Searches the sample's passages for its queries, [n, dim] float32 each; None if no
    passage is relevant to a query."""
    if not any(max(grades.values(), default=0) > 0 for grades in sample.qrels.values()):
        return None
    searcher = FaissSearcher(queries, DEPTH, similarity, dtype=dtype)
    searcher.add(passages, sample.passages.rows)
    rng = np.random.default_rng(0)
    shuffled = [_values(sample, _shuffle(sample, rng)).mean() for _ in range(_SHUFFLES)]
    enough = min(sample.queries.count, sample.passages.count) >= _ENOUGH
    luck = float(max(shuffled)) if enough else 1.0
    return Ranking(_values(sample, searcher.hits()), float(np.mean(shuffled)), luck)


def _values(sample: Sample, hits: Hits) -> np.ndarray:
    values: np.ndarray = evaluate(_MEASURES, sample.qrels, sample.query_ids, hits)[MEASURE]
    return values


def _shuffle(sample: Sample, rng: np.random.Generator) -> Hits:
    rows = np.tile(sample.passages.rows, (sample.queries.count, 1))
    rows = rng.permuted(rows, axis=1)[:, :DEPTH]
    return Hits(np.zeros(rows.shape, np.float32), rows)


def _best(grades: Mapping[str, int]) -> int | None:
    """The row of the passage of the highest grade; None if no relevant one is there."""
    there = {int(row): grade for row, grade in grades.items() if row.isdigit() and grade > 0}
    return max(there, key=lambda row: (there[row], -row)) if there else None


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """So many of them, at even distances."""
    if count >= len(values):
        return values
    spread: np.ndarray = values[np.linspace(0, len(values) - 1, max(0, count)).astype(int)]
    return spread


def _part(store: TokenStore, rows: np.ndarray) -> Part:
    return Part(store, np.flatnonzero(np.isin(store.rows, rows)))
