"""Evaluates one checkpoint: restored parameters -> a result for each set.

Sets that share a corpus are one group, so that the corpus is encoded and searched once.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxval.checkpoints.restore import Restored, restore
from jaxval.corpus.token_store import TokenStore
from jaxval.evaluation.encode import matrix
from jaxval.evaluation.memory import place_towers, within_memory
from jaxval.evaluation.plan import EvalPlan, EvalSet, SetResult, TowerParams
from jaxval.evaluation.search import BackgroundSearcher, FaissSearcher, Reranker
from jaxval.evaluation.stopwatch import Stopwatch
from jaxval.metrics.measures import evaluate
from jaxval.records import Checkpoint, Hits, Progress, Searcher


def validate(
    label: str,
    restored: Restored,
    plan: EvalPlan,
    wanted: Collection[str],
    progress: Progress,
) -> Iterator[SetResult]:
    """Evaluates an encoder's parameters on the sets whose series are in `wanted`.

    Args:
      label: The name of the parameters for the progress bars, e.g. `step 1200`.
      restored: The parameters: of a checkpoint by `load`, or of a tree in memory by
        `checkpoints.restore.fitted`.
      plan: The sets, and how to search them.
      wanted: The series to evaluate. Re-read before each corpus, so the caller may remove
        series while iterating.
      progress: Shows the encoding.

    Raises:
      NonFiniteError: The encoder made vectors with NaN or infinity from finite parameters.
      UserError: The device has too little memory.
    """
    watch = Stopwatch({"restore": restored.seconds})
    with watch("restore"):
        params = place_towers(restored, plan)
    for group in plan.groups:
        sets = [eval_set for eval_set in group.sets if eval_set.series in wanted]
        if not sets:
            continue
        group_watch = Stopwatch(watch.seconds)
        search = functools.partial(
            _search, label, plan, params, group.corpus, sets, group_watch, progress
        )
        hits = within_memory(plan, search)
        for eval_set, set_hits in zip(sets, _split(hits, sets), strict=True):
            set_watch = Stopwatch(group_watch.seconds)
            with set_watch("measures"):
                values = evaluate(plan.measures, eval_set.judgments, set_hits)
            yield SetResult(
                eval_set, group.corpus, set_hits, values, restored.found_at, set_watch.seconds
            )


def load(checkpoint: Checkpoint, plan: EvalPlan) -> Restored:
    """The parameters that the bench's encoder wants; raises what `restore` does."""
    return restore(checkpoint, plan.abstract_params, plan.params_paths, plan.base)


@contextlib.contextmanager
def compiling_ahead(plan: EvalPlan) -> Iterator[None]:
    """Compiles beside what is done inside, in the order of the stages: waiting for the first
    checkpoint and restoring it leave the time."""
    workers = ThreadPoolExecutor(os.cpu_count(), "compile")
    try:
        for group in plan.groups:
            for judged in group.sets:
                plan.query_tower.compile_ahead(plan.abstract_params, judged.queries, workers)
            plan.passage_tower.compile_ahead(plan.abstract_params, group.corpus, workers)
        yield
    finally:
        workers.shutdown(cancel_futures=True)


def _search(
    label: str,
    plan: EvalPlan,
    params: TowerParams,
    corpus: TokenStore,
    sets: Sequence[EvalSet],
    watch: Stopwatch,
    progress: Progress,
) -> Hits:
    def queries(store: TokenStore) -> np.ndarray:
        bar = progress(f"{label}: encoding queries", store.count)
        return matrix(plan.query_tower.chunks(params.query, store, bar), store.count)

    with watch("queries"):
        vectors = np.concatenate([queries(judged.queries) for judged in sets])
    bar = progress(f"{label}: encoding passages", corpus.count)
    chunks = plan.passage_tower.chunks(params.passage, corpus, bar)
    with BackgroundSearcher(_searcher(plan, vectors, sets)) as searcher:
        while True:
            with watch("passages"):
                chunk = next(chunks, None)
            with watch("search"):
                if chunk is None:
                    return searcher.hits()
                searcher.add(chunk.vectors, chunk.rows)


def _searcher(plan: EvalPlan, queries: np.ndarray, sets: Sequence[EvalSet]) -> Searcher:
    candidates = [rows for judged in sets for rows in judged.candidates or ()]
    if candidates:
        return Reranker(queries, candidates, plan.similarity, dtype=plan.index_dtype)
    return FaissSearcher(queries, plan.depth, plan.similarity, dtype=plan.index_dtype)


def _split(hits: Hits, sets: Sequence[EvalSet]) -> Iterator[Hits]:
    start = 0
    for judged in sets:
        part = slice(start, start + judged.queries.count)
        yield Hits(hits.scores[part], hits.rows[part])
        start = part.stop
