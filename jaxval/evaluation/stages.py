"""The stages from parameters to hits: encode the queries, encode the passages, search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxval.corpus.token_store import TokenStore
from jaxval.evaluation.encode import Chunk, matrix
from jaxval.evaluation.plan import EvalPlan, EvalSet, TowerParams
from jaxval.evaluation.stopwatch import Stopwatch
from jaxval.records import Hits, Progress, Searcher


@dataclass(frozen=True)
class Stages:
    """The stages of one encoder's evaluation.

    Attributes:
      label: The name of the parameters for the progress bars, e.g. `step 1200`.
      plan: The towers.
      params: The parameters of each tower, on the devices.
      watch: Counts the seconds of the stages `queries` and `passages`.
      progress: Shows the encoding.
    """

    label: str
    plan: EvalPlan
    params: TowerParams
    watch: Stopwatch
    progress: Progress

    def encode_queries(self, sets: Sequence[EvalSet]) -> np.ndarray:
        """Returns the query vectors of these sets, one below the other.

        Returns:
          [queries, dim] float32.
        """
        with self.watch("queries"):
            return np.concatenate([self._queries(eval_set.queries) for eval_set in sets])

    def search(self, corpus: TokenStore, searchers: Sequence[Searcher]) -> tuple[Hits, ...]:
        """Encodes a corpus once, and feeds each chunk of vectors to every searcher.

        Returns:
          The hits of each searcher.
        """
        for chunk in self._passages(corpus):
            for searcher in searchers:
                searcher.add(chunk.vectors, chunk.rows)
        return tuple(searcher.hits() for searcher in searchers)

    def _queries(self, store: TokenStore) -> np.ndarray:
        bar = self.progress(f"{self.label}: encoding queries", store.count)
        return matrix(self.plan.query_tower.chunks(self.params.query, store, bar), store.count)

    def _passages(self, corpus: TokenStore) -> Iterator[Chunk]:
        bar = self.progress(f"{self.label}: encoding passages", corpus.count)
        chunks = self.plan.passage_tower.chunks(self.params.passage, corpus, bar)
        while True:
            with self.watch("passages"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk
