"""A few queries and passages of a set: enough to see whether the encoder ranks at all."""

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
"""Number of queries, and of passages, in a sample."""

DEPTH = 10
MEASURE = f"nDCG@{DEPTH}"
"""The measure by which a ranking is compared with random rankings."""

_MEASURES = parse([MEASURE], DEPTH)
_SHUFFLES = 200
_ENOUGH = 16  # queries, and passages; with fewer, a random ranking can be a good one


@dataclass(frozen=True)
class StorePart:
    """Some texts of a token store, in its buckets, so that a Tower can encode them.

    The texts are numbered again, from row 0 on.

    Attributes:
      store: the whole store.
      positions: [count] int64, positions in the store, ascending.
    """

    store: TokenStore
    positions: np.ndarray

    @property
    def count(self) -> int:
        """Number of texts."""
        return len(self.positions)

    @functools.cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The store's buckets that hold any of these texts."""
        ends = [bucket.start + bucket.count for bucket in self.store.buckets]
        bounds = [0, *np.searchsorted(self.positions, ends).tolist()]
        return tuple(
            Bucket(bucket.width, start, end - start)
            for bucket, start, end in zip(self.store.buckets, bounds, bounds[1:], strict=False)
            if end > start
        )

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[count] uint16, the texts' lengths in tokens."""
        return np.asarray(self.store.lengths[self.positions])

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[count] int64, the numbers from 0 on."""
        return np.arange(self.count)

    @property
    def store_rows(self) -> np.ndarray:
        """[count] int64, each text's row in the store."""
        return np.asarray(self.store.rows[self.positions])

    def matrix(self, bucket: Bucket) -> np.ndarray:
        """Returns the token ids of a bucket, [bucket.count, bucket.width]."""
        (whole,) = [other for other in self.store.buckets if other.width == bucket.width]
        positions = self.positions[bucket.start : bucket.start + bucket.count]
        return np.asarray(self.store.matrix(whole)[positions - whole.start])


@dataclass(frozen=True)
class Sample:
    """A few queries and passages of a set.

    Attributes:
      queries: SIZE queries, or all if there are fewer.
      passages: SIZE passages, or all if there are fewer.
      query_ids: the queries' ids, in the order of their rows.
      qrels: the judgements, over the rows of `passages`.
    """

    queries: StorePart
    passages: StorePart
    query_ids: tuple[str, ...]
    qrels: RowQrels


@dataclass(frozen=True)
class Ranking:
    """How well the encoder ranks a sample.

    Attributes:
      values: [queries] float64, MEASURE of each query.
      chance: mean of MEASURE over random rankings.
      luck: the highest mean of a random ranking; 1 if there are too few texts to tell a
        ranking from a random one.
    """

    values: np.ndarray
    chance: float
    luck: float

    @property
    def mean(self) -> float:
        """Mean of MEASURE over the queries."""
        return float(self.values.mean())


def choose_sample(judged: EvalSet, corpus: TokenStore, size: int = SIZE) -> Sample:
    """Chooses queries and passages at even distances over a set.

    The passages are the best passage of each query, and then others of the corpus.

    Args:
      judged: the set.
      corpus: its passages.
      size: number of queries, and of passages.
    """
    answers = _answers(judged)
    asked = _spread(np.array(list(answers) or range(judged.queries.count)), size)
    rows = {answers[number] for number in asked.tolist() if number in answers}
    others = _spread(np.arange(corpus.count), 2 * size)
    others = others[~np.isin(others, list(rows))]
    chosen = np.array([*rows, *_spread(others, size - len(rows))], np.int64)
    queries, passages = _part(judged.queries, asked), _part(corpus, chosen)
    ids = tuple(judged.query_ids[row] for row in queries.store_rows)
    return Sample(queries, passages, ids, _among(passages, judged.qrels, ids))


def _answers(judged: EvalSet) -> dict[int, int]:
    """Returns query row -> row of its best passage, if the corpus has a relevant one."""
    best = {number: _best(judged.qrels[id_]) for number, id_ in enumerate(judged.query_ids)}
    return {number: row for number, row in best.items() if row is not None}


def _among(passages: StorePart, qrels: RowQrels, query_ids: Sequence[str]) -> RowQrels:
    """Returns the judgements of these passages, over their rows in the part."""
    at = {str(row): str(place) for place, row in enumerate(passages.store_rows)}
    return {
        query: {at[row]: grade for row, grade in qrels[query].items() if row in at}
        for query in query_ids
    }


def rank_sample(
    sample: Sample, queries: np.ndarray, passages: np.ndarray, similarity: str, dtype: str
) -> Ranking | None:
    """Searches the sample's passages for its queries.

    Args:
      sample: the sample.
      queries: [queries, dim] float32.
      passages: [passages, dim] float32.
      similarity: `dot` or `cosine`.
      dtype: type of the vectors in the index.

    Returns:
      The ranking; None if no passage of the sample is relevant to a query.
    """
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
    """Returns the row of the passage with the highest grade; None if none is relevant."""
    there = {int(row): grade for row, grade in grades.items() if row.isdigit() and grade > 0}
    return max(there, key=lambda row: (there[row], -row)) if there else None


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` of the values, at even distances."""
    if count >= len(values):
        return values
    spread: np.ndarray = values[np.linspace(0, len(values) - 1, max(0, count)).astype(int)]
    return spread


def _part(store: TokenStore, rows: np.ndarray) -> StorePart:
    return StorePart(store, np.flatnonzero(np.isin(store.rows, rows)))
