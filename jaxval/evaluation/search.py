"""Exact top-k over vectors that come in chunks: FAISS on the GPU where there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from jaxval.evaluation.stopwatch import Stopwatch
from jaxval.records import Hits, Searcher

_BLOCK = 64
_PAIRS = 16_384  # of query and candidate, compared at a time
_GPU_MOST = 2048  # hits a query that FAISS can select on a GPU


Knn = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries [queries, dim], vectors [n, dim], k) -> scores float32 and positions int64,
[queries, k], best first; both inputs float32 or both float16."""

DTYPES = ("float32", "float16")


class FaissSearcher:
    """Keeps, for each query, the best `depth` passages of all chunks seen.

    Equal scores stand in document order.

    Args:
      queries: [queries, dim] float32.
      depth: hits a query; a corpus of fewer passages gives fewer.
      similarity: `dot` or `cosine`.
      dtype: what vectors are rounded to before they are compared, one of DTYPES. Products
        are added up in float32.
      knns: each takes an equal part of every chunk, at the same time; None for all GPUs
        that FAISS can use, else the CPU.
    """

    def __init__(
        self,
        queries: np.ndarray,
        depth: int,
        similarity: str,
        *,
        dtype: str = "float32",
        knns: Sequence[Knn] | None = None,
    ):
        self._form = similarity, dtype
        self._knns = _all_gpus() or [_on_cpu] if knns is None else knns
        self._queries = _formed(queries, *self._form)
        self._depth = depth
        self._scores = np.empty((len(queries), 0), np.float32)
        self._rows = np.empty((len(queries), 0), np.int64)

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Searches a chunk: vectors [n, dim] float32, their rows [n] int64."""
        found = [(self._scores, self._rows), *self._search(_formed(vectors, *self._form), rows)]
        scores, all_rows = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        self._scores, self._rows = _keep(scores, all_rows, self._depth)

    def hits(self) -> Hits:
        """The best of all chunks so far."""
        return Hits(*_in_order(self._scores, self._rows))

    def _search(
        self, vectors: np.ndarray, rows: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The best of each part."""

        def search(part: np.ndarray, knn: Knn) -> tuple[np.ndarray, np.ndarray]:
            here = slice(part[0], part[-1] + 1)
            scores, at = _top(knn, self._queries, vectors[here], rows[here], self._depth)
            return scores, rows[here][at]

        parts = [
            each for each in np.array_split(np.arange(len(rows)), len(self._knns)) if len(each)
        ]
        with ThreadPoolExecutor(len(self._knns)) as pool:
            return list(pool.map(search, parts, self._knns))


class Reranker:
    """Scores each query's own candidates, and no other passage.

    Equal scores stand in document order. A query with fewer candidates than another has
    fewer hits.

    Args:
      queries: [queries, dim] float32.
      candidates: the rows of each query's, [n] int64 each, none twice.
      similarity: `dot` or `cosine`.
      dtype: what vectors are rounded to before they are compared, one of DTYPES. Products
        are added up in float32.
    """

    def __init__(
        self,
        queries: np.ndarray,
        candidates: Sequence[np.ndarray],
        similarity: str,
        *,
        dtype: str = "float32",
    ):
        self._form = similarity, dtype
        self._queries = _formed(queries, *self._form)
        rows = np.concatenate(candidates)
        query = np.repeat(np.arange(len(candidates)), [len(each) for each in candidates])
        order = np.argsort(rows, kind="stable")
        self._rows, self._query = rows[order], query[order]  # a pair each, by row
        self._scores = np.full(len(rows), -np.inf, np.float32)

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Scores a chunk for those whose candidates are in it: vectors [n, dim] float32,
        their rows [n] int64.
        """
        vectors = _formed(vectors, *self._form)
        first, end = (np.searchsorted(self._rows, rows, side) for side in ("left", "right"))
        counts = end - first
        passage = np.repeat(np.arange(len(rows)), counts)
        pair = np.arange(len(passage)) + np.repeat(first - (counts.cumsum() - counts), counts)
        for start in range(0, len(pair), _PAIRS):
            pairs, passages = (each[start : start + _PAIRS] for each in (pair, passage))
            queries = self._queries[self._query[pairs]].astype(np.float32, copy=False)
            found = vectors[passages].astype(np.float32, copy=False)
            self._scores[pairs] = np.einsum("pd,pd->p", queries, found)

    def hits(self) -> Hits:
        """The candidates among all chunks so far."""
        seen = np.flatnonzero(self._scores > -np.inf)
        query, rows, scores = self._query[seen], self._rows[seen], self._scores[seen]
        order = np.lexsort((rows, -scores, query))
        query, rows, scores = query[order], rows[order], scores[order]
        counts = np.bincount(query, minlength=len(self._queries))
        rank = np.arange(len(query)) - np.repeat(counts.cumsum() - counts, counts)
        shape = len(counts), int(counts.max(initial=0))
        hits = Hits(np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64))
        hits.scores[query, rank], hits.rows[query, rank] = scores, rows
        return hits


class BackgroundSearcher:
    """A Searcher that searches a chunk while its caller makes the next one.

    Leave it as a context, so that no search goes on behind its back. At most one chunk
    waits: who brings another one waits too.
    """

    def __init__(self, searcher: Searcher):
        self._searcher = searcher
        self._thread = ThreadPoolExecutor(1)
        self._search: Future[None] | None = None

    def __enter__(self) -> BackgroundSearcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Begins with this chunk, once the one before it has been searched.

        Raises:
          Exception: what the search of that one raised.
        """
        self._wait()
        self._search = self._thread.submit(self._searcher.add, vectors, rows)

    def hits(self) -> Hits:
        """The best of all chunks; raises as `add` does."""
        self._wait()
        return self._searcher.hits()

    def _wait(self) -> None:
        if self._search is not None:
            self._search.result()


class TimedSearcher:
    """A Searcher that counts the seconds of another one.

    Args:
      searcher: The searcher.
      watch: Counts the seconds.
      stage: The stage that they are counted for.
    """

    def __init__(self, searcher: Searcher, watch: Stopwatch, stage: str):
        self._searcher = searcher
        self._watch = watch
        self._stage = stage

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Searches a chunk: vectors [n, dim] float32, their rows [n] int64."""
        with self._watch(self._stage):
            self._searcher.add(vectors, rows)

    def hits(self) -> Hits:
        """Returns the best of all chunks so far."""
        with self._watch(self._stage):
            return self._searcher.hits()


def _formed(vectors: np.ndarray, similarity: str, dtype: str) -> np.ndarray:
    """As they are compared."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if similarity == "cosine":
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, 1e-12)
    return vectors.astype(dtype, copy=False)


def _keep(scores: np.ndarray, rows: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `depth` of each query, in no order; of equals at the last place the first
    rows. Only queries with such equals are sorted.
    """
    if scores.shape[1] <= depth:
        return scores, rows
    best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    kept, kept_rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    tied = (scores >= kept.min(1, keepdims=True)).sum(1) > depth
    sorted_scores, sorted_rows = _in_order(scores[tied], rows[tied])
    kept[tied], kept_rows[tied] = sorted_scores[:, :depth], sorted_rows[:, :depth]
    return kept, kept_rows


def _in_order(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _top(
    knn: Knn, queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions of the best `depth`; in no order among equals.

    Of passages with equal scores at the last place FAISS keeps any. So it is asked for one
    more, and the queries for which that one scores as the last does are searched again.
    """
    # FAISS fills up with -1 beyond the chunk's size: never ask for more than there is.
    scores, found = knn(queries, vectors, min(depth + 1, len(vectors)))
    if found.shape[1] <= depth:
        return scores, found
    tied = np.flatnonzero(scores[:, depth - 1] == scores[:, depth])
    for start in range(0, len(tied), _BLOCK):
        block = tied[start : start + _BLOCK]
        exact_scores = queries[block].astype(np.float32) @ vectors.T.astype(np.float32)
        for query, exact in zip(block, exact_scores, strict=True):
            best = _first_of_equals(exact, rows, depth)
            scores[query, :depth], found[query, :depth] = exact[best], best
    return scores[:, :depth], found[:, :depth]


def _first_of_equals(scores: np.ndarray, rows: np.ndarray, depth: int) -> np.ndarray:
    """Positions of the best `depth` scores; of equals at the last place the first rows."""
    last = np.partition(scores, -depth)[-depth]
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    missing = depth - len(above)
    return np.concatenate([above, equal[np.argpartition(rows[equal], missing - 1)[:missing]]])


def _on_cpu(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    queries, vectors = (each.astype(np.float32, copy=False) for each in (queries, vectors))
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


@functools.cache
def _all_gpus() -> list[Knn]:
    """One a GPU; none with FAISS's CPU build."""
    count = int(getattr(faiss, "get_num_gpus", lambda: 0)())
    return [
        functools.partial(_on_gpu, number, faiss.StandardGpuResources())
        for number in range(count)
    ]


def _on_gpu(
    number: int, resources: Any, queries: np.ndarray, vectors: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    if k > _GPU_MOST:
        return _on_cpu(queries, vectors, k)
    inner = faiss.METRIC_INNER_PRODUCT
    return faiss.knn_gpu(resources, queries, vectors, k, metric=inner, device=number)
