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
from jaxval.evaluation.memory import place_towers, within_memory
from jaxval.evaluation.plan import EvalPlan, EvalSet, SetResult
from jaxval.evaluation.search import (
    BackgroundSearcher,
    FaissSearcher,
    Reranker,
    TimedSearcher,
)
from jaxval.evaluation.stages import Stages
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
        stages = Stages(label, plan, params, group_watch, progress)
        hits = within_memory(plan, functools.partial(_search, stages, group.corpus, sets))
        for eval_set, set_hits in zip(sets, _split(hits, sets), strict=True):
            set_watch = Stopwatch(group_watch.seconds)
            with set_watch("measures"):
                values = evaluate(plan.measures, eval_set.judgments, set_hits)
            yield SetResult(
                eval_set, group.corpus, set_hits, values, restored.found_at, set_watch.seconds
            )


def load(checkpoint: Checkpoint, plan: EvalPlan) -> Restored:
    """Restores the parameters that the plan's encoder expects.

    Raises:
      MismatchError: The checkpoint does not have them.
      CheckpointError: The checkpoint cannot be read.
      OSError: The file system failed; another try may succeed.
    """
    return restore(checkpoint, plan.abstract_params, plan.params_paths, plan.base)


@contextlib.contextmanager
def compiling_ahead(plan: EvalPlan) -> Iterator[None]:
    """Compiles in the background what a validation runs, in the order of its stages.

    Compilation overlaps with the wait for the first checkpoint and with its restoration.
    """
    workers = ThreadPoolExecutor(os.cpu_count(), "compile")
    try:
        for group in plan.groups:
            for eval_set in group.sets:
                plan.query_tower.compile_ahead(plan.abstract_params, eval_set.queries, workers)
            plan.passage_tower.compile_ahead(plan.abstract_params, group.corpus, workers)
        yield
    finally:
        workers.shutdown(cancel_futures=True)


def _search(stages: Stages, corpus: TokenStore, sets: Sequence[EvalSet]) -> Hits:
    """Returns the hits of the queries of all sets, one set below the other."""
    queries = stages.encode_queries(sets)
    with BackgroundSearcher(_searcher(stages.plan, queries, sets)) as searcher:
        (hits,) = stages.search(corpus, [TimedSearcher(searcher, stages.watch, "search")])
    return hits


def _searcher(plan: EvalPlan, queries: np.ndarray, sets: Sequence[EvalSet]) -> Searcher:
    candidates = [rows for eval_set in sets for rows in eval_set.candidates or ()]
    if candidates:
        return Reranker(queries, candidates, plan.similarity, dtype=plan.index_dtype)
    return FaissSearcher(queries, plan.depth, plan.similarity, dtype=plan.index_dtype)


def _split(hits: Hits, sets: Sequence[EvalSet]) -> Iterator[Hits]:
    """Yields the hits of each set."""
    start = 0
    for eval_set in sets:
        part = slice(start, start + eval_set.queries.count)
        yield Hits(hits.scores[part], hits.rows[part])
        start = part.stop
