"""A small sample of queries and passages, to check that an encoder ranks better than chance."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from jaxval.corpus.token_store import Bucket, TokenStore
from jaxval.evaluation.plan import EvalSet
from jaxval.evaluation.search import FaissSearcher
from jaxval.metrics.measures import evaluate, parse
from jaxval.metrics.ranks import Judgments
from jaxval.records import Hits

SIZE = 64
"""Number of queries, and of passages."""

DEPTH = 10
MEASURE = f"nDCG@{DEPTH}"
"""The measure that is compared with the one of random rankings."""

_MEASURES = parse([MEASURE], DEPTH)
_SHUFFLES = 200
_ENOUGH = 16  # queries, and passages: with fewer, random rankings can be good


@dataclass(frozen=True)
class StorePart:
    """Some texts of a token store, in its widths. Their rows count from 0.

    Attributes:
      store: The token store.
      positions: [count] int64, the positions in the store; ascending.
    """

    store: TokenStore
    positions: np.ndarray

    @property
    def count(self) -> int:
        """Number of texts."""
        return len(self.positions)

    @functools.cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets of the store that contain any of these texts."""
        ends = [bucket.start + bucket.count for bucket in self.store.buckets]
        bounds = [0, *np.searchsorted(self.positions, ends).tolist()]
        return tuple(
            Bucket(bucket.width, start, end - start)
            for bucket, start, end in zip(self.store.buckets, bounds, bounds[1:], strict=False)
            if end > start
        )

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[count] uint16, the number of tokens of each text."""
        return np.asarray(self.store.lengths[self.positions])

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[count] int64, the rows from 0 to count - 1."""
        return np.arange(self.count)

    @property
    def store_rows(self) -> np.ndarray:
        """[count] int64, the row of each text in the store."""
        return np.asarray(self.store.rows[self.positions])

    def matrix(self, bucket: Bucket) -> np.ndarray:
        """Returns [bucket.count, bucket.width] token ids."""
        (whole,) = [other for other in self.store.buckets if other.width == bucket.width]
        positions = self.positions[bucket.start : bucket.start + bucket.count]
        return np.asarray(self.store.matrix(whole)[positions - whole.start])


@dataclass(frozen=True)
class Sample:
    """A small part of a validation set.

    Attributes:
      queries: SIZE queries, or as many as there are.
      passages: SIZE passages, or as many as there are.
      judgments: Of these queries on these passages.
    """

    queries: StorePart
    passages: StorePart
    judgments: Judgments


@dataclass(frozen=True)
class Ranking:
    """How well a sample is ranked.

    Attributes:
      values: [queries] MEASURE of each query.
      chance: The mean of random rankings.
      luck: The highest mean of many random rankings; 1 if there are too few texts for a
        comparison with chance.
    """

    values: np.ndarray
    chance: float
    luck: float

    @property
    def mean(self) -> float:
        """The mean over the queries."""
        return float(self.values.mean())


def choose_sample(eval_set: EvalSet, corpus: TokenStore, size: int = SIZE) -> Sample:
    """Returns queries from all over the set with passages from all over the corpus.

    The passages contain the best one of each chosen query. The others fill up to `size`.

    Args:
      eval_set: The set.
      corpus: The passages of the set.
      size: Number of queries, and of passages.
    """
    answered, answers = _answers(eval_set.judgments)
    numbers = answered if len(answered) else np.arange(eval_set.queries.count)
    numbers = _spread(numbers, size)
    rows = np.unique(answers[np.isin(answered, numbers)])
    others = _spread(np.arange(corpus.count), 2 * size)
    others = _spread(others[~np.isin(others, rows)], size - len(rows))
    queries = _part(eval_set.queries, numbers)
    passages = _part(corpus, np.concatenate([rows, others]))
    return Sample(queries, passages, _judgments_between(queries, passages, eval_set.judgments))


def _answers(judgments: Judgments) -> tuple[np.ndarray, np.ndarray]:
    """Returns the queries that have a relevant passage in the corpus, and the best of each.

    Of passages with equal grades the first row is taken. Both arrays are [n] int64.
    """
    relevant = (judgments.row >= 0) & (judgments.grade > 0)
    query, row = judgments.query[relevant], judgments.row[relevant]
    order = np.lexsort((row, -judgments.grade[relevant], query))
    answered, first = np.unique(query[order], return_index=True)
    return answered, row[order][first]


def _judgments_between(
    queries: StorePart, passages: StorePart, judgments: Judgments
) -> Judgments:
    """Returns the judgments of these queries on these passages, over the parts' rows."""
    query = _places(queries, judgments.query)
    row = _places(passages, judgments.row)
    both = np.flatnonzero((query >= 0) & (row >= 0))
    both = both[np.argsort(query[both], kind="stable")]
    return Judgments(query[both], row[both], judgments.grade[both], queries.count)


def _places(part: StorePart, rows: np.ndarray) -> np.ndarray:
    """Returns the row in the part of each row of its store; -1 where the part lacks it."""
    order = np.argsort(part.store_rows)
    at = np.minimum(np.searchsorted(part.store_rows[order], rows), part.count - 1)
    return np.where(part.store_rows[order][at] == rows, order[at], -1)


def rank_sample(
    sample: Sample, queries: np.ndarray, passages: np.ndarray, similarity: str, dtype: str
) -> Ranking | None:
    """Ranks the sample's passages for its queries.

    Args:
      sample: The sample.
      queries: [n, dim] float32, the vectors of its queries.
      passages: [n, dim] float32, the vectors of its passages.
      similarity: `dot` or `cosine`.
      dtype: The dtype that vectors are rounded to before they are compared.

    Returns:
      How well the passages are ranked; None if no passage is relevant to a query.
    """
    if not (sample.judgments.grade > 0).any():
        return None
    searcher = FaissSearcher(queries, DEPTH, similarity, dtype=dtype)
    searcher.add(passages, sample.passages.rows)
    rng = np.random.default_rng(0)
    shuffled = [_values(sample, _shuffle(sample, rng)).mean() for _ in range(_SHUFFLES)]
    enough = min(sample.queries.count, sample.passages.count) >= _ENOUGH
    luck = float(max(shuffled)) if enough else 1.0
    return Ranking(_values(sample, searcher.hits()), float(np.mean(shuffled)), luck)


def _values(sample: Sample, hits: Hits) -> np.ndarray:
    values: np.ndarray = evaluate(_MEASURES, sample.judgments, hits)[MEASURE]
    return values


def _shuffle(sample: Sample, rng: np.random.Generator) -> Hits:
    rows = np.tile(sample.passages.rows, (sample.queries.count, 1))
    rows = rng.permuted(rows, axis=1)[:, :DEPTH]
    return Hits(np.zeros(rows.shape, np.float32), rows)


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` of the values, evenly spaced; all of them if there are fewer."""
    if count >= len(values):
        return values
    spread: np.ndarray = values[np.linspace(0, len(values) - 1, max(0, count)).astype(int)]
    return spread


def _part(store: TokenStore, rows: np.ndarray) -> StorePart:
    return StorePart(store, np.flatnonzero(np.isin(store.rows, rows)))
