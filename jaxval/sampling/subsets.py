"""Evaluates one checkpoint on a whole corpus and on parts of it, by one encoding.

Each part is searched in its share of the corpus's vectors, chunk by chunk. So any number of
parts costs one encoding, and only one chunk of vectors is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxval.checkpoints.restore import Restored
from jaxval.corpus.token_store import TokenStore
from jaxval.evaluation.memory import place_towers, within_memory
from jaxval.evaluation.plan import EvalPlan
from jaxval.evaluation.search import FaissSearcher, TimedSearcher
from jaxval.evaluation.stages import Stages
from jaxval.evaluation.stopwatch import Stopwatch
from jaxval.metrics.measures import evaluate
from jaxval.records import Hits, Progress, Searcher


@dataclass(frozen=True)
class Subset:
    """A part of a corpus, which may be all of it.

    Attributes:
      mask: [passages] bool, in document order.
      tokens: Number of tokens of its passages, without padding.
    """

    mask: np.ndarray
    tokens: int

    @property
    def passages(self) -> int:
        """Number of passages."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Trial:
    """The results of one checkpoint on each subset.

    Attributes:
      per_query: For each subset, measure name -> [queries] float64.
      shared: Stage -> seconds spent once for all subsets: restore, queries, passages.
      own: For each subset, the seconds of its search and its measures.
    """

    per_query: tuple[Mapping[str, np.ndarray], ...]
    shared: Mapping[str, float]
    own: tuple[float, ...]


def subset(corpus: TokenStore, rows: np.ndarray) -> Subset:
    """Returns the subset of these rows; [n] int64, in any order."""
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
    """Evaluates one checkpoint on each subset of the plan's first corpus, by its first set.

    Args:
      label: The name of the checkpoint for the progress bars.
      restored: The parameters of the checkpoint.
      plan: The corpus, the set, and how to search.
      subsets: The parts of the corpus.
      progress: Shows the encoding.

    Raises:
      NonFiniteError: The encoder made vectors with NaN or infinity from finite parameters.
      UserError: The device has too little memory.
    """
    watch = Stopwatch({"restore": restored.seconds})
    with watch("restore"):
        params = place_towers(restored, plan)

    def work() -> Trial:
        stages = Stages(label, plan, params, Stopwatch(watch.seconds), progress)
        return _attempt(stages, subsets)

    return within_memory(plan, work)


def _attempt(stages: Stages, subsets: Sequence[Subset]) -> Trial:
    plan, group = stages.plan, stages.plan.groups[0]
    eval_set = group.sets[0]
    queries = stages.encode_queries([eval_set])
    watches = [Stopwatch({"own": 0.0}) for _ in subsets]

    def searcher(part: Subset, watch: Stopwatch) -> Searcher:
        whole = FaissSearcher(queries, plan.depth, plan.similarity, dtype=plan.index_dtype)
        return TimedSearcher(_SubsetSearcher(part.mask, whole), watch, "own")

    searchers = [searcher(*pair) for pair in zip(subsets, watches, strict=True)]
    values = []
    for hits, watch in zip(stages.search(group.corpus, searchers), watches, strict=True):
        with watch("own"):
            values.append(evaluate(plan.measures, eval_set.judgments, hits))
    own = tuple(watch.seconds["own"] for watch in watches)
    return Trial(tuple(values), stages.watch.seconds, own)


class _SubsetSearcher:
    """A Searcher that skips the passages outside a subset.

    Args:
      mask: [passages] bool, the subset in document order.
      searcher: Searches the passages of the subset.
    """

    def __init__(self, mask: np.ndarray, searcher: Searcher):
        self._mask = mask
        self._searcher = searcher

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        inside = self._mask[rows]
        if inside.all():
            self._searcher.add(vectors, rows)
        elif inside.any():
            self._searcher.add(vectors[inside], rows[inside])

    def hits(self) -> Hits:
        return self._searcher.hits()
