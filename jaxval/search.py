"""Exact top-k over vectors that come in chunks: FAISS on the GPU where there is one."""

from __future__ import annotations

import functools
from typing import Any

import faiss
import numpy as np

from jaxval.records import Hits

_BLOCK = 64
_GPU_MOST = 2048  # hits a query that FAISS can select on a GPU


class FaissSearcher:
    """Keeps, for each query, the best `depth` passages of all chunks seen.

    Equal scores stand in document order.

    Args:
      queries: [queries, dim] float32.
      depth: hits a query; a corpus of fewer passages gives fewer.
      similarity: `dot` or `cosine`.
    """

    def __init__(self, queries: np.ndarray, depth: int, similarity: str):
        self._cosine = similarity == "cosine"
        self._queries = self._prepared(queries)
        self._depth = depth
        self._scores = np.empty((len(queries), 0), np.float32)
        self._rows = np.empty((len(queries), 0), np.int64)

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Searches a chunk: vectors [n, dim] float32, their rows [n] int64."""
        scores, found = _top(self._queries, self._prepared(vectors), rows, self._depth)
        scores = np.concatenate([self._scores, scores], axis=1)
        all_rows = np.concatenate([self._rows, rows[found]], axis=1)
        self._scores, self._rows = _keep(scores, all_rows, self._depth)

    def hits(self) -> Hits:
        """The best of all chunks so far."""
        return Hits(*_in_order(self._scores, self._rows))

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self._cosine:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
        return vectors


def gpus() -> int:
    """How many GPUs FAISS can use; 0 with its CPU build."""
    return int(getattr(faiss, "get_num_gpus", lambda: 0)())


def _keep(scores: np.ndarray, rows: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `depth` of each query, in no order; of equals at the last place the first
    rows. Only queries with such equals are sorted."""
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
    queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions of the best `depth`; in no order among equals.

    Of passages with equal scores at the last place FAISS keeps any. So it is asked for one
    more, and the queries for which that one scores as the last does are searched again.
    """
    # FAISS fills up with -1 beyond the chunk's size: never ask for more than there is.
    scores, found = _knn(queries, vectors, min(depth + 1, len(vectors)))
    if found.shape[1] <= depth:
        return scores, found
    tied = np.flatnonzero(scores[:, depth - 1] == scores[:, depth])
    for start in range(0, len(tied), _BLOCK):
        block = tied[start : start + _BLOCK]
        for query, exact in zip(block, queries[block] @ vectors.T, strict=True):
            best = _first_of_equals(exact, rows, depth)
            scores[query, :depth], found[query, :depth] = exact[best], best
    return scores[:, :depth], found[:, :depth]


def _first_of_equals(scores: np.ndarray, rows: np.ndarray, depth: int) -> np.ndarray:
    """Positions of the best `depth` scores; of equals at the last place the first rows."""
    last = np.partition(scores, -depth)[-depth]
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    missing = depth - len(above)
    return np.concatenate([above, equal[np.argpartition(rows[equal], missing - 1)[:missing]]])


def _knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if gpus() and k <= _GPU_MOST:
        return faiss.knn_gpu(
            _gpu_resources(), queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT
        )
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


@functools.cache
def _gpu_resources() -> Any:
    return faiss.StandardGpuResources()
