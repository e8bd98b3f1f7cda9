"""How long a checkpoint will take: batches of the real shapes, timed, times their number."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxval.evaluation.encode import Tokens, Tower
from jaxval.evaluation.plan import EvalPlan, TowerParams
from jaxval.evaluation.search import FaissSearcher
from jaxval.records import Bar, Params

Shape = tuple[int, int]
"""Rows on all devices, and width."""

_PATIENCE = 60.0  # seconds for a tower; shapes beyond that are inferred from the others
_IN_TURN = 2
_BUSY = 0.5
_VECTORS, _QUERIES = 4096, 1024  # of the search that is timed


@dataclass(frozen=True)
class Timed:
    """A batch of one shape.

    Attributes:
      compiled: seconds that its program took to be made, or found where it is kept.
      seconds: of a batch since then.
      dim: components of a vector.
    """

    compiled: float
    seconds: float
    dim: int


@dataclass(frozen=True)
class Pace:
    """One tower's batches: how many there are of each shape, and how long they take.

    Attributes:
      shapes: of all that it encodes, how many batches.
      timed: those shapes that were tried, the ones with most tokens first.
    """

    shapes: Mapping[Shape, int]
    timed: Mapping[Shape, Timed]

    @property
    def untried(self) -> int:
        """Shapes that were not tried."""
        return len(self.shapes) - len(self.timed)

    def seconds(self, shapes: Mapping[Shape, int]) -> float:
        """Of so many batches. The rate of a shape that was not tried is between those of the
        widths beside it.
        """
        rates = {
            width: one.seconds / (rows * width) for (rows, width), one in self.timed.items()
        }
        widths = sorted(rates)
        total = 0.0
        for (rows, width), count in shapes.items():
            rate = np.interp(width, widths, [rates[each] for each in widths])
            known = self.timed.get((rows, width))
            total += count * (known.seconds if known else rows * width * float(rate))
        return total


@dataclass(frozen=True)
class Paces:
    """Of both towers.

    Attributes:
      query, passage: each tower's.
      loading: seconds to trace the most frequent shape and load its program from where it
        was kept.
    """

    query: Pace
    passage: Pace
    loading: float

    @property
    def first(self) -> float:
        """Seconds that the first checkpoint of a run takes for the programs of all shapes."""
        both = (self.query, self.passage)
        slowest = max(one.compiled for pace in both for one in pace.timed.values())
        tried = sum(len(pace.timed) for pace in both)
        untried = sum(pace.untried for pace in both)
        return tried * self.loading + untried * max(slowest, self.loading)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return next(iter(self.passage.timed.values())).dim


def paces(
    plan: EvalPlan,
    params: TowerParams,
    bar: Callable[[int], Bar],
    clock: Callable[[], float] = time.perf_counter,
) -> Paces:
    """Tries the batches of each tower, most tokens first, for a minute each at most.

    Args:
      bench: whose sets are to be encoded.
      params: on its devices; what they hold does not matter.
      bar: shows the work, a unit a shape.
      clock: seconds.
    """
    queries = [judged.queries for judged in plan.sets]
    passages = [group.corpus for group in plan.groups]
    work = [
        (plan.query_tower, params.query, queries),
        (plan.passage_tower, params.passage, passages),
    ]
    counts = [_shapes(tower, stores) for tower, _, stores in work]
    with bar(sum(map(len, counts))) as shown:
        found = [
            Pace(shapes, _try(plan, *each, shapes, shown, clock))
            for each, shapes in zip(work, counts, strict=True)
        ]
    query, passage = found
    return Paces(query, passage, _loading(plan, params.passage, passages, passage, clock))


def _loading(
    plan: EvalPlan,
    params: Params,
    stores: Sequence[Tokens],
    pace: Pace,
    clock: Callable[[], float],
) -> float:
    jax.clear_caches()  # as at the start of a process
    arrays = batch(stores, next(iter(pace.timed)), len(plan.devices))
    return _time(plan.passage_tower, params, *arrays, clock).compiled


def _shapes(tower: Tower, stores: Sequence[Tokens]) -> dict[Shape, int]:
    total: dict[Shape, int] = {}
    for store in stores:
        for shape, count in tower.shapes(store).items():
            total[shape] = total.get(shape, 0) + count
    most = sorted(total, key=lambda shape: -shape[0] * shape[1] * total[shape])
    return {shape: total[shape] for shape in most}


def _try(
    plan: EvalPlan,
    tower: Tower,
    params: Params,
    stores: Sequence[Tokens],
    shapes: Mapping[Shape, int],
    bar: Bar,
    clock: Callable[[], float],
) -> dict[Shape, Timed]:
    start = clock()
    timed: dict[Shape, Timed] = {}
    for shape in shapes:
        if not timed or clock() - start < _PATIENCE:
            ids, lengths = batch(stores, shape, len(plan.devices))
            timed[shape] = _time(tower, params, ids, lengths, clock)
        bar.update(1)
    return timed


def batch(
    stores: Sequence[Tokens], shape: Shape, devices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Real tokens in this shape: ids [devices, rows, width], lengths [devices, rows]."""
    rows, width = shape
    found = [(store, one) for store in stores for one in store.buckets if one.width == width]
    store, bucket = found[0]
    texts = np.arange(rows) % bucket.count
    ids = store.matrix(bucket)[texts].reshape(devices, rows // devices, width)
    lengths = np.asarray(store.lengths)[bucket.start + texts]
    return ids, lengths.reshape(devices, rows // devices)


def _time(
    tower: Tower,
    params: Params,
    ids: np.ndarray,
    lengths: np.ndarray,
    clock: Callable[[], float],
) -> Timed:
    def run(times: int) -> float:
        start = clock()
        vectors = [tower.run(params, ids, lengths) for _ in range(times)]
        jax.tree.map(np.asarray, vectors)
        return clock() - start

    dim = int(jax.eval_shape(tower.run, params, ids, lengths).shape[-1])
    first, again = run(1), run(_IN_TURN) / _IN_TURN
    return Timed(max(0.0, first - again), again, dim)


def busy(
    load: Callable[[], tuple[float, float, float]] = os.getloadavg, cores: int | None = None
) -> float | None:
    """Processes a core that ran or waited in the last minute, if there were enough of them to
    make every time uncertain.
    """
    each = load()[0] / (cores or os.cpu_count() or 1)
    return each if each > _BUSY else None


def search_seconds(plan: EvalPlan, queries: int, passages: int, dim: int) -> float:
    """Of a search of so many vectors, by one of fewer."""
    some, asked = min(passages, _VECTORS), min(queries, _QUERIES)
    rng = np.random.default_rng(0)
    vectors, texts = (rng.normal(size=(n, dim)).astype(np.float32) for n in (some, asked))
    searcher = FaissSearcher(texts, plan.depth, plan.similarity, dtype=plan.index_dtype)
    searcher.add(vectors[:1], np.arange(1))  # it takes its time to begin
    start = time.perf_counter()
    searcher.add(vectors, np.arange(some) + 1)
    spent = time.perf_counter() - start
    return spent * (passages / some) * (queries / asked)
