"""Estimates how long a checkpoint takes: times a batch of each shape, and counts batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import psutil

from jaxval.evaluation.encode import Tokens, Tower
from jaxval.evaluation.plan import EvalPlan, TowerParams
from jaxval.evaluation.search import FaissSearcher
from jaxval.records import Bar, Params

Shape = tuple[int, int]
"""Shape of a batch: rows on all devices together, and width in tokens."""

_TIME_LIMIT = 60.0  # seconds per tower; later shapes are interpolated
_REPEATS = 2
_HIGH_LOAD = 0.5
_SEARCH_PASSAGES, _SEARCH_QUERIES = 4096, 1024  # of the timed search, at most


@dataclass(frozen=True)
class BatchTiming:
    """How long batches of one shape take.

    Attributes:
      compile_seconds: Seconds to compile the program, or to load it from the compilation
        cache.
      seconds: Seconds per batch after that.
      dim: Dimension of the vectors.
    """

    compile_seconds: float
    seconds: float
    dim: int


@dataclass(frozen=True)
class TowerTiming:
    """How many batches of each shape a tower encodes, and how long they take.

    Attributes:
      shapes: Shape -> number of batches, over all that the tower encodes.
      timed: Shape -> timing, of the shapes that were timed.
    """

    shapes: Mapping[Shape, int]
    timed: Mapping[Shape, BatchTiming]

    @property
    def untimed(self) -> int:
        """Number of shapes that were not timed."""
        return len(self.shapes) - len(self.timed)

    def seconds(self, shapes: Mapping[Shape, int]) -> float:
        """Returns the seconds that batches take.

        The time per token of a shape that was not timed is interpolated between the widths
        that were.

        Args:
          shapes: Shape -> number of batches.
        """
        per_token = {
            width: timing.seconds / (rows * width)
            for (rows, width), timing in self.timed.items()
        }
        widths = sorted(per_token)
        rates = [per_token[width] for width in widths]
        total = 0.0
        for (rows, width), count in shapes.items():
            timing = self.timed.get((rows, width))
            rate = float(np.interp(width, widths, rates))
            total += count * (timing.seconds if timing else rows * width * rate)
        return total


@dataclass(frozen=True)
class EncodingTiming:
    """Timings of both towers.

    Attributes:
      query: Timing of the query tower.
      passage: Timing of the passage tower.
      loading: Seconds to trace the program of the most frequent shape and to load it from
        the compilation cache.
    """

    query: TowerTiming
    passage: TowerTiming
    loading: float

    @property
    def startup(self) -> float:
        """Seconds that the first checkpoint of a run takes for the programs of all shapes."""
        towers = (self.query, self.passage)
        slowest = max(
            timing.compile_seconds for tower in towers for timing in tower.timed.values()
        )
        timed = sum(len(tower.timed) for tower in towers)
        untimed = sum(tower.untimed for tower in towers)
        return timed * self.loading + untimed * max(slowest, self.loading)

    @property
    def programs(self) -> int:
        """Number of programs, one per shape and tower."""
        return len(self.query.shapes) + len(self.passage.shapes)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return next(iter(self.passage.timed.values())).dim


def time_encoding(
    plan: EvalPlan,
    params: TowerParams,
    bar: Callable[[int], Bar],
    clock: Callable[[], float] = time.perf_counter,
) -> EncodingTiming:
    """Times batches of each tower, the shapes with most tokens first, for a minute per tower.

    Args:
      plan: The towers, and the sets to encode.
      params: Parameters on the devices; their values do not matter.
      bar: Makes a progress bar of a given number of shapes.
      clock: Returns seconds.
    """
    queries = [eval_set.queries for eval_set in plan.sets]
    passages = [group.corpus for group in plan.groups]
    query_shapes = _count_shapes(plan.query_tower, queries)
    passage_shapes = _count_shapes(plan.passage_tower, passages)
    with bar(len(query_shapes) + len(passage_shapes)) as shown:
        query = _time_tower(
            plan, plan.query_tower, params.query, queries, query_shapes, shown, clock
        )
        passage = _time_tower(
            plan, plan.passage_tower, params.passage, passages, passage_shapes, shown, clock
        )
    loading = _time_loading(plan, params.passage, passages, passage, clock)
    return EncodingTiming(query, passage, loading)


def _time_loading(
    plan: EvalPlan,
    params: Params,
    stores: Sequence[Tokens],
    timing: TowerTiming,
    clock: Callable[[], float],
) -> float:
    jax.clear_caches()  # as at the start of a process
    arrays = make_batch(stores, next(iter(timing.timed)), len(plan.devices))
    return _time_batch(plan.passage_tower, params, *arrays, clock).compile_seconds


def _count_shapes(tower: Tower, stores: Sequence[Tokens]) -> dict[Shape, int]:
    """Returns shape -> number of batches, the shape with most tokens first."""
    total: dict[Shape, int] = {}
    for store in stores:
        for shape, count in tower.shapes(store).items():
            total[shape] = total.get(shape, 0) + count
    order = sorted(total, key=lambda shape: -shape[0] * shape[1] * total[shape])
    return {shape: total[shape] for shape in order}


def _time_tower(
    plan: EvalPlan,
    tower: Tower,
    params: Params,
    stores: Sequence[Tokens],
    shapes: Mapping[Shape, int],
    bar: Bar,
    clock: Callable[[], float],
) -> TowerTiming:
    start = clock()
    timed: dict[Shape, BatchTiming] = {}
    for shape in shapes:
        if not timed or clock() - start < _TIME_LIMIT:
            ids, lengths = make_batch(stores, shape, len(plan.devices))
            timed[shape] = _time_batch(tower, params, ids, lengths, clock)
        bar.update(1)
    return TowerTiming(shapes, timed)


def make_batch(
    stores: Sequence[Tokens], shape: Shape, devices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch of real texts.

    Args:
      stores: Tokenized texts; at least one has a bucket of this width.
      shape: Shape of the batch.
      devices: Number of devices, a divisor of the rows.

    Returns:
      Token ids [devices, rows, width], and the texts' lengths [devices, rows].
    """
    rows, width = shape
    store, bucket = next(
        (store, bucket) for store in stores for bucket in store.buckets if bucket.width == width
    )
    positions = np.arange(rows) % bucket.count
    ids = store.matrix(bucket)[positions].reshape(devices, rows // devices, width)
    lengths = np.asarray(store.lengths)[bucket.start + positions]
    return ids, lengths.reshape(devices, rows // devices)


def _time_batch(
    tower: Tower,
    params: Params,
    ids: np.ndarray,
    lengths: np.ndarray,
    clock: Callable[[], float],
) -> BatchTiming:
    def run(times: int) -> float:
        start = clock()
        vectors = [tower.run(params, ids, lengths) for _ in range(times)]
        jax.tree.map(np.asarray, vectors)
        return clock() - start

    dim = int(jax.eval_shape(tower.run, params, ids, lengths).shape[-1])
    first, later = run(1), run(_REPEATS) / _REPEATS
    return BatchTiming(max(0.0, first - later), later, dim)


def high_load(
    load: Callable[[], tuple[float, float, float]] = psutil.getloadavg,
    cores: int | None = None,
) -> float | None:
    """Returns the machine's load per core if it is too high for exact timings, else None.

    Args:
      load: Returns the mean number of running and waiting processes over the last 1, 5 and
        15 minutes.
      cores: Number of logical CPUs; None takes that of the machine.
    """
    per_core = load()[0] / (cores or psutil.cpu_count() or 1)
    return per_core if per_core > _HIGH_LOAD else None


def search_seconds(plan: EvalPlan, queries: int, passages: int, dim: int) -> float:
    """Estimates the seconds of a search, from a timed search of fewer vectors.

    Args:
      plan: How to search.
      queries: Number of queries.
      passages: Number of passages.
      dim: Dimension of the vectors.
    """
    few_passages, few_queries = min(passages, _SEARCH_PASSAGES), min(queries, _SEARCH_QUERIES)
    rng = np.random.default_rng(0)
    passage_vectors, query_vectors = (
        rng.normal(size=(count, dim)).astype(np.float32)
        for count in (few_passages, few_queries)
    )
    searcher = FaissSearcher(query_vectors, plan.depth, plan.similarity, dtype=plan.index_dtype)
    searcher.add(passage_vectors[:1], np.arange(1))  # the first call also initializes FAISS
    start = time.perf_counter()
    searcher.add(passage_vectors, np.arange(few_passages) + 1)
    seconds = time.perf_counter() - start
    return seconds * (passages / few_passages) * (queries / few_queries)
