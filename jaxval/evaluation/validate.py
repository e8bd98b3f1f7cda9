"""One checkpoint -> its Validations, a stage a line.

A Bench is all that does not change from one checkpoint to the next. Sets that share a
corpus stand in one Round, so that the corpus is encoded and searched once for all.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from jaxval.checkpoints.restore import Restored, restore
from jaxval.corpus.token_store import TokenStore
from jaxval.evaluation.encode import matrix
from jaxval.evaluation.memory import place_towers, within_memory
from jaxval.evaluation.plan import EvalPlan, EvalSet, SetResult, TowerParams
from jaxval.evaluation.search import BackgroundSearcher, FaissSearcher, Reranker
from jaxval.evaluation.stopwatch import Stopwatch
from jaxval.metrics.measures import evaluate
from jaxval.records import Checkpoint, Hits, Progress, Searcher, Validation

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")


def validate(
    checkpoint: Checkpoint,
    restored: Restored,
    plan: EvalPlan,
    wanted: Collection[str],
    progress: Progress,
) -> Iterator[SetResult]:
    """Validates one checkpoint on the sets whose series are `wanted`.

    Args:
      checkpoint: which.
      restored: its parameters.
      bench: what it is put to, round by round.
      wanted: looked at when a round begins, so that who takes the outcomes may take a later
        set from it meanwhile.
      progress: shows the encoding.

    Raises:
      NonFiniteError: the encoder made NaN of finite parameters.
      UserError: the device has too little memory.
    """
    watch = Stopwatch({"restore": restored.seconds})
    with watch("restore"):
        params = place_towers(restored, plan)
    for group in plan.groups:
        sets = [judged for judged in group.sets if judged.series in wanted]
        if sets:
            lap = Stopwatch(watch.seconds)
            search = functools.partial(
                _search, checkpoint, plan, params, group.corpus, sets, lap, progress
            )
            hits = within_memory(plan, search)
            for judged, found in zip(sets, _split(hits, sets), strict=True):
                yield _judge(checkpoint, plan, restored, group.corpus, judged, found, lap)


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
    checkpoint: Checkpoint,
    plan: EvalPlan,
    params: TowerParams,
    corpus: TokenStore,
    sets: Sequence[EvalSet],
    watch: Stopwatch,
    progress: Progress,
) -> Hits:
    def queries(store: TokenStore) -> np.ndarray:
        bar = progress(f"step {checkpoint.step}: encoding queries", store.count)
        return matrix(plan.query_tower.chunks(params.query, store, bar), store.count)

    with watch("queries"):
        vectors = np.concatenate([queries(judged.queries) for judged in sets])
    bar = progress(f"step {checkpoint.step}: encoding passages", corpus.count)
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


def _judge(
    checkpoint: Checkpoint,
    plan: EvalPlan,
    restored: Restored,
    corpus: TokenStore,
    judged: EvalSet,
    hits: Hits,
    watch: Stopwatch,
) -> SetResult:
    lap = Stopwatch(watch.seconds)
    with lap("measures"):
        values = evaluate(plan.measures, judged.qrels, judged.query_ids, hits)
    validation = Validation(
        checkpoint=checkpoint,
        dataset=judged.name,
        series=judged.series,
        params_at=restored.found_at,
        passages=corpus.count,
        queries=len(judged.query_ids),
        per_query=values,
        seconds=lap.seconds,
    )
    return SetResult(validation, hits, judged, corpus)
