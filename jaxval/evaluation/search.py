"""Exact search over vectors that come in chunks, by FAISS, on GPUs where it has any."""

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
_PAIRS = 16_384  # pairs of query and candidate that are scored at a time
_GPU_MOST = 2048  # maximum number of hits per query that FAISS can select on a GPU


Knn = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries [queries, dim], vectors [n, dim], k) -> scores float32 and positions int64,
[queries, k], best first; both inputs float32 or both float16."""


class FaissSearcher:
    """Keeps the best `depth` passages of all chunks for each query.

    Hits with equal scores are in document order.

    Args:
      queries: [queries, dim] float32.
      depth: Number of hits for each query. A corpus of fewer passages gives fewer hits.
      similarity: `dot` or `cosine`.
      dtype: The dtype that vectors are rounded to before they are compared, `float32` or
        `float16`. Products are summed in float32.
      knns: The searches that each take an equal part of every chunk, in parallel. None takes
        all GPUs that FAISS can use, or the CPU if there is none.
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
        parts = [(self._scores, self._rows), *self._search(_formed(vectors, *self._form), rows)]
        scores, all_rows = (np.concatenate(array, axis=1) for array in zip(*parts, strict=True))
        self._scores, self._rows = _keep(scores, all_rows, self._depth)

    def hits(self) -> Hits:
        """Returns the best of all chunks so far."""
        return Hits(*_in_order(self._scores, self._rows))

    def _search(
        self, vectors: np.ndarray, rows: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the scores and rows of the best passages in each part of a chunk."""

        def search(part: np.ndarray, knn: Knn) -> tuple[np.ndarray, np.ndarray]:
            here = slice(part[0], part[-1] + 1)
            scores, at = _top(knn, self._queries, vectors[here], rows[here], self._depth)
            return scores, rows[here][at]

        parts = [
            part for part in np.array_split(np.arange(len(rows)), len(self._knns)) if len(part)
        ]
        with ThreadPoolExecutor(len(self._knns)) as pool:
            return list(pool.map(search, parts, self._knns))


class Reranker:
    """Scores only the candidates of each query.

    Hits with equal scores are in document order. A query has as many hits as candidates.

    Args:
      queries: [queries, dim] float32.
      candidates: The rows of each query's candidates, [n] int64 each, without duplicates.
      similarity: `dot` or `cosine`.
      dtype: The dtype that vectors are rounded to before they are compared, `float32` or
        `float16`. Products are summed in float32.
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
        query = np.repeat(np.arange(len(candidates)), [len(own) for own in candidates])
        order = np.argsort(rows, kind="stable")
        self._rows, self._query = rows[order], query[order]  # one pair each, in order of rows
        self._scores = np.full(len(rows), -np.inf, np.float32)

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Scores the candidates in a chunk: vectors [n, dim] float32, their rows [n] int64."""
        vectors = _formed(vectors, *self._form)
        first, end = (np.searchsorted(self._rows, rows, side) for side in ("left", "right"))
        counts = end - first
        passage = np.repeat(np.arange(len(rows)), counts)
        pair = np.arange(len(passage)) + np.repeat(first - (counts.cumsum() - counts), counts)
        for start in range(0, len(pair), _PAIRS):
            pairs, passages = (array[start : start + _PAIRS] for array in (pair, passage))
            queries = self._queries[self._query[pairs]].astype(np.float32, copy=False)
            chosen = vectors[passages].astype(np.float32, copy=False)
            self._scores[pairs] = np.einsum("pd,pd->p", queries, chosen)

    def hits(self) -> Hits:
        """Returns the candidates in all chunks so far, best first."""
        scored = np.flatnonzero(self._scores > -np.inf)
        query, rows, scores = self._query[scored], self._rows[scored], self._scores[scored]
        order = np.lexsort((rows, -scores, query))
        query, rows, scores = query[order], rows[order], scores[order]
        counts = np.bincount(query, minlength=len(self._queries))
        rank = np.arange(len(query)) - np.repeat(counts.cumsum() - counts, counts)
        shape = len(counts), int(counts.max(initial=0))
        hits = Hits(np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64))
        hits.scores[query, rank], hits.rows[query, rank] = scores, rows
        return hits


class BackgroundSearcher:
    """A Searcher that searches a chunk in a thread while its caller makes the next one.

    Use it as a context manager: its exit waits for the search of the last chunk. `add` waits
    while the chunk before is being searched.

    Args:
      searcher: Searches the chunks.
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
        """Starts the search of a chunk, after that of the chunk before has ended.

        Args:
          vectors: [n, dim] float32.
          rows: [n] int64, their rows.

        Raises:
          Exception: What the search of the chunk before raised.
        """
        self._wait()
        self._search = self._thread.submit(self._searcher.add, vectors, rows)

    def hits(self) -> Hits:
        """Returns the best of all chunks; raises what the search of the last one raised."""
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
    """Returns vectors as they are compared: of unit length for `cosine`, in `dtype`."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if similarity == "cosine":
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, 1e-12)
    return vectors.astype(dtype, copy=False)


def _keep(scores: np.ndarray, rows: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores and rows of the best `depth` hits of each query, in no order.

    Of hits with equal scores at the last place the first rows are kept. Only queries with
    such hits are sorted.
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
    """Returns the scores and positions of the best `depth` passages of each query.

    Of passages with equal scores at the last place FAISS keeps any. So FAISS returns one
    passage more, and the queries whose passage `depth + 1` scores as passage `depth` are
    searched again.
    """
    # FAISS fills up with -1 where k is greater than the number of vectors.
    scores, positions = knn(queries, vectors, min(depth + 1, len(vectors)))
    if positions.shape[1] <= depth:
        return scores, positions
    tied = np.flatnonzero(scores[:, depth - 1] == scores[:, depth])
    wide = vectors.astype(np.float32, copy=False) if len(tied) else vectors
    for start in range(0, len(tied), _BLOCK):
        block = tied[start : start + _BLOCK]
        exact_scores = queries[block].astype(np.float32) @ wide.T
        for query, exact in zip(block, exact_scores, strict=True):
            best = _first_of_equals(exact, rows, depth)
            scores[query, :depth], positions[query, :depth] = exact[best], best
    return scores[:, :depth], positions[:, :depth]


def _first_of_equals(scores: np.ndarray, rows: np.ndarray, depth: int) -> np.ndarray:
    """Returns the positions of the best `depth` scores, with the first rows among equals."""
    last = np.partition(scores, -depth)[-depth]
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    missing = depth - len(above)
    return np.concatenate([above, equal[np.argpartition(rows[equal], missing - 1)[:missing]]])


def _on_cpu(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    queries, vectors = (array.astype(np.float32, copy=False) for array in (queries, vectors))
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


@functools.cache
def _all_gpus() -> list[Knn]:
    """Returns one search for each GPU; none with FAISS's CPU build."""
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
