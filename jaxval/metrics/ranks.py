"""The common measures, computed for all queries at once from the grades by rank.

As trec_eval defines them, and so as ir_measures computes them, which is two orders of
magnitude slower on thousands of queries at depth 1,000. AvgRank, which ir_measures does not
have, is that of `measures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RowQrels = Mapping[str, Mapping[str, int]]
"""query id -> document (its row as a string, or what stands for one outside) -> grade."""


@dataclass(frozen=True)
class Graded:
    """Hits with what the judges said.

    Attributes:
      grades: [queries, depth] int64 of the hits in order; 0 where unjudged or no hit.
      judged: [queries, most] int64, each query's grades from the best down, then zeros.
    """

    grades: np.ndarray
    judged: np.ndarray

    def found(self, measure: Any) -> np.ndarray:
        """[queries, cutoff] bool: which hits are relevant to the measure."""
        found: np.ndarray = self.grades[:, : self.cutoff(measure)] >= measure["rel"]
        return found

    def relevant(self, measure: Any) -> np.ndarray:
        """[queries]: how many documents are relevant to the measure; 1 instead of 0."""
        count: np.ndarray = np.maximum((self.judged >= measure["rel"]).sum(1), 1)
        return count

    def cutoff(self, measure: Any) -> int:
        """How many hits the measure looks at."""
        return int(measure.params.get("cutoff", self.grades.shape[1]))


def grade(qrels: RowQrels, query_ids: Sequence[str], rows: np.ndarray) -> Graded:
    """Looks up the grade of each hit; rows [queries, depth], -1 where there is none."""
    triples = [
        (number, int(doc), grade)
        for number, query in enumerate(query_ids)
        for doc, grade in qrels[query].items()
        if doc.isdigit()
    ]
    query, doc, value = np.array(triples, np.int64).reshape(-1, 3).T
    span = 1 + max(rows.max(initial=0), doc.max(initial=0))
    keys = query * span + doc
    order = np.argsort(keys)
    keys, value = keys[order], value[order]
    hits = np.arange(len(rows))[:, None] * span + rows
    at = np.minimum(np.searchsorted(keys, hits), max(len(keys) - 1, 0))
    if not len(keys):
        return Graded(np.zeros_like(rows), _judged(qrels, query_ids))
    grades = np.where((keys[at] == hits) & (rows >= 0), value[at], 0)
    return Graded(grades, _judged(qrels, query_ids))


def _judged(qrels: RowQrels, query_ids: Sequence[str]) -> np.ndarray:
    judged = np.zeros((len(query_ids), max((len(qrels[q]) for q in query_ids), default=0)), int)
    for number, query in enumerate(query_ids):
        grades = sorted(qrels[query].values(), reverse=True)
        judged[number, : len(grades)] = grades
    return judged


def computes(measure: Any) -> bool:
    """Whether `compute` knows this measure with these parameters."""
    plain = {name for name, value in measure.params.items() if name not in ("cutoff", "rel")}
    return str(measure.NAME) in _MEASURES and not plain


def compute(measure: Any, graded: Graded) -> np.ndarray:
    """The measure of each query, [queries] float64."""
    return np.asarray(_MEASURES[str(measure.NAME)](measure, graded), np.float64)


def _reciprocal_rank(measure: Any, graded: Graded) -> Any:
    found = graded.found(measure)
    if found.shape[1] == 0:
        return np.zeros(len(found))
    return found.any(1) / (1 + found.argmax(1))


def _precision(measure: Any, graded: Graded) -> Any:
    return graded.found(measure).sum(1) / graded.cutoff(measure)


def _recall(measure: Any, graded: Graded) -> Any:
    return graded.found(measure).sum(1) / graded.relevant(measure)


def _success(measure: Any, graded: Graded) -> Any:
    return graded.found(measure).any(1)


def _average_precision(measure: Any, graded: Graded) -> Any:
    found = graded.found(measure)
    precision = found.cumsum(1) / np.arange(1, found.shape[1] + 1)
    return (precision * found).sum(1) / graded.relevant(measure)


def _average_rank(measure: Any, graded: Graded) -> Any:
    """What is not found counts as found right behind the last place, and so does the
    relevant document of a query that has none."""
    found = graded.found(measure)
    behind = found.shape[1] + 1
    missing = graded.relevant(measure) - found.sum(1)
    ranks = (found * np.arange(1, behind)).sum(1) + missing * behind
    return ranks / graded.relevant(measure)


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
