"""One checkpoint -> its values on the whole corpus and on parts of it, by one encoding.

A part's hits are searched among those of the corpus's vectors that it has, chunk by chunk,
so that any number of parts costs one encoding, and a chunk of vectors is all that is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxval.checkpoints.restore import Restored
from jaxval.corpus.token_store import TokenStore
from jaxval.evaluation.encode import Chunk, matrix
from jaxval.evaluation.memory import place_towers, within_memory
from jaxval.evaluation.plan import EvalPlan, EvalSet, TowerParams
from jaxval.evaluation.search import FaissSearcher
from jaxval.evaluation.stopwatch import Stopwatch
from jaxval.metrics.measures import evaluate
from jaxval.records import Progress


@dataclass(frozen=True)
class Subset:
    """A part of a corpus, which may be all of it.

    Attributes:
      mask: [passages] bool, in document order.
      tokens: of its passages, without padding.
    """

    mask: np.ndarray
    tokens: int

    @property
    def passages(self) -> int:
        """How many it has."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Trial:
    """What one checkpoint scored on each subset.

    Attributes:
      per_query: of each subset, measure name -> [queries] float64.
      shared: stage -> seconds spent once for all subsets: restore, queries, passages.
      own: of each subset, seconds of its searching and its measures.
    """

    per_query: tuple[Mapping[str, np.ndarray], ...]
    shared: Mapping[str, float]
    own: tuple[float, ...]


def subset(corpus: TokenStore, rows: np.ndarray) -> Subset:
    """The subset of these rows; [n] int64, in any order."""
    mask = np.zeros(corpus.count, bool)
    mask[rows] = True
    return Subset(mask, int(corpus.lengths[mask[corpus.rows]].sum(dtype=np.int64)))


def attempt(
    label: str,
    restored: Restored,
    plan: EvalPlan,
    subsets: Sequence[Subset],
    progress: Progress,
) -> Trial:
    """Puts one checkpoint to each subset of the bench's first corpus, by its first set.

    Raises:
      NonFiniteError: the encoder made NaN of finite parameters.
      UserError: the device has too little memory.
    """
    watch = Stopwatch({"restore": restored.seconds})
    with watch("restore"):
        params = place_towers(restored, plan)

    def work() -> Trial:
        return _attempt(label, params, plan, subsets, Stopwatch(watch.seconds), progress)

    return within_memory(plan, work)


def _attempt(
    label: str,
    params: TowerParams,
    plan: EvalPlan,
    subsets: Sequence[Subset],
    watch: Stopwatch,
    progress: Progress,
) -> Trial:
    corpus, judged = plan.groups[0].corpus, plan.groups[0].sets[0]
    with watch("queries"):
        bar = progress(f"{label}: encoding queries", judged.queries.count)
        found = plan.query_tower.chunks(params.query, judged.queries, bar)
        queries = matrix(found, judged.queries.count)
    parts = [_Part(each, queries, plan) for each in subsets]
    bar = progress(f"{label}: encoding passages", corpus.count)
    chunks = plan.passage_tower.chunks(params.passage, corpus, bar)
    while True:
        with watch("passages"):
            chunk = next(chunks, None)
        if chunk is None:
            break
        for part in parts:
            part.add(chunk)
    values = tuple(part.values(plan, judged) for part in parts)
    return Trial(values, watch.seconds, tuple(part.seconds for part in parts))


class _Part:
    """The search in one subset, and how long it takes."""

    def __init__(self, subset: Subset, queries: np.ndarray, plan: EvalPlan):
        self._mask = subset.mask
        self._watch = Stopwatch({"own": 0.0})
        self._searcher = FaissSearcher(
            queries, plan.depth, plan.similarity, dtype=plan.index_dtype
        )

    @property
    def seconds(self) -> float:
        return self._watch.seconds["own"]

    def add(self, chunk: Chunk) -> None:
        with self._watch("own"):
            here = self._mask[chunk.rows]
            if here.all():
                self._searcher.add(chunk.vectors, chunk.rows)
            elif here.any():
                self._searcher.add(chunk.vectors[here], chunk.rows[here])

    def values(self, plan: EvalPlan, judged: EvalSet) -> dict[str, np.ndarray]:
        with self._watch("own"):
            hits = self._searcher.hits()
            return evaluate(plan.measures, judged.qrels, judged.query_ids, hits)
