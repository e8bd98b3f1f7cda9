"""One checkpoint -> its Validations, a stage a line.

A Bench is all that does not change from one checkpoint to the next. Sets that share a
corpus stand in one Round, so that the corpus is encoded and searched once for all.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from jaxval.checkpoints.lora import Base
from jaxval.checkpoints.restore import Restored, restore
from jaxval.corpus.tokens import TokenStore
from jaxval.encode import Tower, matrix, place
from jaxval.errors import UserError
from jaxval.measures import evaluate
from jaxval.ranks import RowQrels
from jaxval.records import (
    Checkpoint,
    Hits,
    Params,
    ParamsPaths,
    Progress,
    Searcher,
    Validation,
)
from jaxval.search import Beside, FaissSearcher, Reranker

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class JudgedSet:
    """The queries of one validation set, ready to be encoded and judged.

    Attributes:
      name: the set's.
      series: digest of the data and the settings.
      queries: their token store, in the order of query_ids.
      query_ids: ids of the judged queries.
      qrels: over the rows of the round's corpus.
      candidates: where only each query's own are scored, their rows, [n] int64 a query.
    """

    name: str
    series: str
    queries: TokenStore
    query_ids: tuple[str, ...]
    qrels: RowQrels
    candidates: tuple[np.ndarray, ...] | None = None


@dataclass(frozen=True)
class Round:
    """A corpus and the sets that are searched in it."""

    corpus: TokenStore
    sets: tuple[JudgedSet, ...]


@dataclass(frozen=True)
class Bench:
    """What every checkpoint is put to.

    Attributes:
      abstract_params: the tree to find in a checkpoint, in the dtypes to hold it in.
      query_tower, passage_tower: the encoder's two functions on the devices.
      rounds: a corpus each.
      devices: where it runs.
      params_paths: the subtrees of a checkpoint that the user names.
      base: what the checkpoints hold adapters of; None if they hold whole parameters.
      similarity, index_dtype, depth, measures: of the search.
    """

    abstract_params: Params
    query_tower: Tower
    passage_tower: Tower
    rounds: tuple[Round, ...]
    devices: tuple[jax.Device, ...]
    params_paths: ParamsPaths
    base: Base | None
    similarity: str
    index_dtype: str
    depth: int
    measures: tuple[Any, ...]

    @property
    def sets(self) -> list[JudgedSet]:
        """Every set, round by round."""
        return [judged for round_ in self.rounds for judged in round_.sets]


@dataclass(frozen=True)
class Outcome:
    """A Validation, and the hits it was computed from, for run files."""

    validation: Validation
    hits: Hits
    judged: JudgedSet
    corpus: TokenStore


def validate(
    checkpoint: Checkpoint,
    restored: Restored,
    bench: Bench,
    wanted: Collection[str],
    progress: Progress,
) -> Iterator[Outcome]:
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
        params = place_towers(restored, bench)
    for round_ in bench.rounds:
        sets = [judged for judged in round_.sets if judged.series in wanted]
        if sets:
            lap = Stopwatch(watch.seconds)
            search = functools.partial(
                _search, checkpoint, bench, params, round_.corpus, sets, lap, progress
            )
            hits = within_memory(bench, search)
            for judged, found in zip(sets, _split(hits, sets), strict=True):
                yield _judge(checkpoint, bench, restored, round_.corpus, judged, found, lap)


def load(checkpoint: Checkpoint, bench: Bench) -> Restored:
    """The parameters that the bench's encoder wants; raises what `restore` does."""
    return restore(checkpoint, bench.abstract_params, bench.params_paths, bench.base)


@contextlib.contextmanager
def compiling_ahead(bench: Bench) -> Iterator[None]:
    """Compiles beside what is done inside, in the order of the stages: waiting for the first
    checkpoint and restoring it leave the time."""
    workers = ThreadPoolExecutor(os.cpu_count(), "compile")
    try:
        for round_ in bench.rounds:
            for judged in round_.sets:
                bench.query_tower.compile_ahead(bench.abstract_params, judged.queries, workers)
            bench.passage_tower.compile_ahead(bench.abstract_params, round_.corpus, workers)
        yield
    finally:
        workers.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class TowerParams:
    """What each tower encodes with, on the devices: the same arrays where they are tied."""

    query: Params
    passage: Params


def place_towers(restored: Restored, bench: Bench) -> TowerParams:
    """Copies what was restored to the bench's devices, a tied tree once.

    Raises:
      UserError: a device has too little memory for it.
    """
    try:
        placed = place(restored.params, bench.devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the parameters do not fit into the device's memory: choose another by --devices,"
            " or --dtype=bfloat16"
        ) from error
    return TowerParams(**placed) if restored.untied else TowerParams(placed, placed)


def within_memory(bench: Bench, work: Callable[[], Result]) -> Result:
    """What the work returns: it is done again with half the batch for as long as the device's
    memory is too small.

    Raises:
      UserError: it is so for the smallest batch too.
    """
    while True:
        try:
            return work()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _halve(bench, error)


def _halve(bench: Bench, error: Exception) -> None:
    tokens = {tower.halve() for tower in (bench.query_tower, bench.passage_tower)}
    if tokens == {None}:
        raise UserError(
            "the device has too little memory for the smallest batch: choose another by"
            " --devices, or --dtype=bfloat16"
        ) from error
    _LOG.warning(
        "the device is out of memory: from now on %s tokens a batch (--batch_tokens)",
        max(filter(None, tokens)),
    )


def _search(
    checkpoint: Checkpoint,
    bench: Bench,
    params: TowerParams,
    corpus: TokenStore,
    sets: Sequence[JudgedSet],
    watch: Stopwatch,
    progress: Progress,
) -> Hits:
    def queries(store: TokenStore) -> np.ndarray:
        bar = progress(f"step {checkpoint.step}: encoding queries", store.count)
        return matrix(bench.query_tower.chunks(params.query, store, bar), store.count)

    with watch("queries"):
        vectors = np.concatenate([queries(judged.queries) for judged in sets])
    bar = progress(f"step {checkpoint.step}: encoding passages", corpus.count)
    chunks = bench.passage_tower.chunks(params.passage, corpus, bar)
    with Beside(_searcher(bench, vectors, sets)) as searcher:
        while True:
            with watch("passages"):
                chunk = next(chunks, None)
            with watch("search"):
                if chunk is None:
                    return searcher.hits()
                searcher.add(chunk.vectors, chunk.rows)


def _searcher(bench: Bench, queries: np.ndarray, sets: Sequence[JudgedSet]) -> Searcher:
    candidates = [rows for judged in sets for rows in judged.candidates or ()]
    if candidates:
        return Reranker(queries, candidates, bench.similarity, dtype=bench.index_dtype)
    return FaissSearcher(queries, bench.depth, bench.similarity, dtype=bench.index_dtype)


def _split(hits: Hits, sets: Sequence[JudgedSet]) -> Iterator[Hits]:
    start = 0
    for judged in sets:
        part = slice(start, start + judged.queries.count)
        yield Hits(hits.scores[part], hits.rows[part])
        start = part.stop


def _judge(
    checkpoint: Checkpoint,
    bench: Bench,
    restored: Restored,
    corpus: TokenStore,
    judged: JudgedSet,
    hits: Hits,
    watch: Stopwatch,
) -> Outcome:
    lap = Stopwatch(watch.seconds)
    with lap("measures"):
        values = evaluate(bench.measures, judged.qrels, judged.query_ids, hits)
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
    return Outcome(validation, hits, judged, corpus)


class Stopwatch:
    """Seconds by stage, going on from those given."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds = dict(seconds or {})

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts what is done in this context for `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
