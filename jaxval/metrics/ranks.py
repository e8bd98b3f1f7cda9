"""The common measures, computed for all queries at once from the grades by rank.

The definitions are those of trec_eval, so the values equal those of ir_measures, which is
two orders of magnitude slower on thousands of queries at depth 1,000. AvgRank is not in
ir_measures: `measures` defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxval.records import Qrels


@dataclass(frozen=True, eq=False)
class Judgments:
    """Relevance judgments of some queries on a corpus, one entry per judged pair.

    Attributes:
      query: [n] int64, the number of the query, from 0 to queries - 1; ascending.
      row: [n] int64, the row of the document in the corpus, or -1 if the corpus lacks it. No
        query has a row twice.
      grade: [n] int64.
      queries: Number of queries, with or without judgments.
    """

    query: np.ndarray
    row: np.ndarray
    grade: np.ndarray
    queries: int

    @classmethod
    def from_qrels(
        cls, qrels: Qrels, query_ids: Sequence[str], rows: Mapping[str, int]
    ) -> Judgments:
        """Returns the judgments of these queries.

        Args:
          qrels: Query id -> document id -> grade.
          query_ids: The queries, in the order of their numbers.
          rows: Document id -> row, for the documents that the corpus has.
        """
        entries = [
            (number, rows.get(document, -1), grade)
            for number, query in enumerate(query_ids)
            for document, grade in qrels[query].items()
        ]
        query, row, grade = np.array(entries, np.int64).reshape(-1, 3).T
        return cls(query, row, grade, len(query_ids))


@dataclass(frozen=True, eq=False)
class Graded:
    """Hits with their grades.

    Attributes:
      grades: [queries, depth] int64, the grades of the hits in order; 0 where a hit is not
        judged or there is no hit.
      judged: [queries, most] int64, the grades of each query's judgments in descending order,
        then zeros.
    """

    grades: np.ndarray
    judged: np.ndarray

    def relevant_hits(self, measure: Any) -> np.ndarray:
        """Returns [queries, cutoff] bool: which hits are relevant to the measure."""
        relevant: np.ndarray = self.grades[:, : self.cutoff(measure)] >= measure["rel"]
        return relevant

    def relevant_count(self, measure: Any) -> np.ndarray:
        """Returns [queries]: how many documents are relevant to the measure; 1 instead of 0."""
        count: np.ndarray = np.maximum((self.judged >= measure["rel"]).sum(1), 1)
        return count

    def cutoff(self, measure: Any) -> int:
        """Returns the number of hits that the measure takes into account."""
        return int(measure.params.get("cutoff", self.grades.shape[1]))


def grade(judgments: Judgments, rows: np.ndarray) -> Graded:
    """Returns the hits with their grades.

    Args:
      judgments: The judgments of the queries.
      rows: [queries, depth] int64, the rows of the hits; -1 where there is none.
    """
    judged = _descending(judgments)
    inside = judgments.row >= 0
    query, row, value = (
        array[inside] for array in (judgments.query, judgments.row, judgments.grade)
    )
    if not len(row):
        return Graded(np.zeros_like(rows), judged)
    span = 1 + max(rows.max(initial=0), row.max())
    keys = query * span + row
    order = np.argsort(keys)
    keys, value = keys[order], value[order]
    hits = np.arange(len(rows))[:, None] * span + rows
    at = np.minimum(np.searchsorted(keys, hits), len(keys) - 1)
    return Graded(np.where((keys[at] == hits) & (rows >= 0), value[at], 0), judged)


def _descending(judgments: Judgments) -> np.ndarray:
    """Returns [queries, most] int64: each query's grades in descending order, then zeros."""
    counts = np.bincount(judgments.query, minlength=judgments.queries)
    starts = np.cumsum(counts) - counts
    judged = np.zeros((judgments.queries, counts.max(initial=0)), np.int64)
    place = np.arange(len(judgments.query)) - np.repeat(starts, counts)
    order = np.lexsort((-judgments.grade, judgments.query))
    judged[judgments.query, place] = judgments.grade[order]
    return judged


def computes(measure: Any) -> bool:
    """Returns whether `compute` can compute this measure with these parameters."""
    plain = {name for name, value in measure.params.items() if name not in ("cutoff", "rel")}
    return str(measure.NAME) in _MEASURES and not plain


def compute(measure: Any, graded: Graded) -> np.ndarray:
    """Returns [queries] float64: the value of the measure for each query."""
    return np.asarray(_MEASURES[str(measure.NAME)](measure, graded), np.float64)


def _reciprocal_rank(measure: Any, graded: Graded) -> Any:
    relevant = graded.relevant_hits(measure)
    if relevant.shape[1] == 0:
        return np.zeros(len(relevant))
    return relevant.any(1) / (1 + relevant.argmax(1))


def _precision(measure: Any, graded: Graded) -> Any:
    return graded.relevant_hits(measure).sum(1) / graded.cutoff(measure)


def _recall(measure: Any, graded: Graded) -> Any:
    return graded.relevant_hits(measure).sum(1) / graded.relevant_count(measure)


def _success(measure: Any, graded: Graded) -> Any:
    return graded.relevant_hits(measure).any(1)


def _average_precision(measure: Any, graded: Graded) -> Any:
    relevant = graded.relevant_hits(measure)
    precision = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(1) / graded.relevant_count(measure)


def _average_rank(measure: Any, graded: Graded) -> Any:
    """Returns the mean rank of the relevant documents.

    A relevant document that is not among the hits has the rank after the last hit. A query
    without a relevant document counts as if one were missing.
    """
    relevant = graded.relevant_hits(measure)
    beyond = relevant.shape[1] + 1
    missing = graded.relevant_count(measure) - relevant.sum(1)
    ranks = (relevant * np.arange(1, beyond)).sum(1) + missing * beyond
    return ranks / graded.relevant_count(measure)


def _ndcg(measure: Any, graded: Graded) -> Any:
    ideal = graded.judged[:, : measure.params.get("cutoff")]
    best = _dcg(ideal)
    gained = _dcg(graded.grades[:, : graded.cutoff(measure)])
    return np.divide(gained, best, out=np.zeros(len(best)), where=best > 0)


def _dcg(grades: np.ndarray) -> np.ndarray:
    discounts = np.log2(np.arange(2, grades.shape[1] + 2))
    gained: np.ndarray = (np.maximum(grades, 0) / discounts).sum(1)
    return gained


_MEASURES: Mapping[str, Callable[[Any, Graded], Any]] = {
    "RR": _reciprocal_rank,
    "P": _precision,
    "R": _recall,
    "Success": _success,
    "AP": _average_precision,
    "nDCG": _ndcg,
    "AvgRank": _average_rank,
}
