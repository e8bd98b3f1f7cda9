"""Estimates the memory that a validation needs, on each device and on the host."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import dataclass
from typing import Any

import jax
import psutil

from jaxval.check.timing import TowerTiming, make_batch
from jaxval.evaluation.encode import Tower
from jaxval.evaluation.plan import EvalPlan, TowerParams
from jaxval.records import Params

_CHUNKS = 3  # the parts of a chunk, their joined copy, and a chunk that is searched
_HIT_BYTES = 12  # a float32 score and an int64 row


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of each device, in bytes.

    Attributes:
      params: Size of the parameters.
      batch: Size of what the program of the widest batch needs in addition; None if unknown.
      limit: Maximum that JAX may allocate; None if unknown.
    """

    params: int
    batch: int | None
    limit: int | None

    @property
    def too_small(self) -> bool:
        """Whether the limit is known and too low."""
        return self.limit is not None and self.params + (self.batch or 0) > self.limit


@dataclass(frozen=True)
class HostMemory:
    """Memory of the host, in bytes.

    Attributes:
      peak: The most that this process has used so far, libraries and one checkpoint included.
      prefetched: Size of the checkpoints that are restored ahead of time.
      vectors: Size of the query vectors and of the chunks of passage vectors.
      available: What the machine has available.
    """

    peak: int
    prefetched: int
    vectors: int
    available: int

    @property
    def too_small(self) -> bool:
        """Whether less is available than will be needed."""
        return self.prefetched + self.vectors > self.available


def device_memory(plan: EvalPlan, params: TowerParams, timing: TowerTiming) -> DeviceMemory:
    """Returns the memory of each device while it encodes passages.

    Args:
      plan: The devices and the corpora.
      params: Parameters on the devices.
      timing: The passage tower's timing, with the shapes of its batches.
    """
    stores = [group.corpus for group in plan.groups]
    tied = params.query is params.passage
    size = tree_bytes(params.passage) + (0 if tied else tree_bytes(params.query))
    stats = plan.devices[0].memory_stats() or {}
    widest = max(timing.timed, key=lambda shape: (shape[1], shape[0]))
    ids, lengths = make_batch(stores, widest, len(plan.devices))
    batch = _program_bytes(plan.passage_tower, params.passage, ids, lengths)
    return DeviceMemory(size, batch, stats.get("bytes_limit"))


def host_memory(plan: EvalPlan, params: int, checkpoints: int, dim: int) -> HostMemory:
    """Returns the memory that the process needs on the host.

    Args:
      plan: The sets and the corpora.
      params: Bytes of a checkpoint's parameters.
      checkpoints: Number of checkpoints that are restored ahead of time.
      dim: Dimension of the vectors.
    """
    row = 4 * dim  # bytes of a float32 vector
    queries = max(
        sum(eval_set.queries.count for eval_set in group.sets) for group in plan.groups
    )
    passages = max(group.corpus.count for group in plan.groups)
    chunk = min(4 * plan.passage_tower.chunk_floats, passages * row)
    hits = queries * plan.depth * _HIT_BYTES
    vectors = 2 * queries * row + _CHUNKS * (chunk + hits)
    available = int(psutil.virtual_memory().available)
    return HostMemory(_peak(), checkpoints * params, vectors, available)


def tree_bytes(params: Params) -> int:
    """Returns the size of a tree of arrays or of jax.ShapeDtypeStruct, in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _program_bytes(tower: Tower, params: Params, *arrays: Any) -> int | None:
    """Returns the bytes that a batch needs in addition to the parameters; None if unknown."""
    # On some platforms this is unknown: JAX returns None, or raises XLA's error.
    with contextlib.suppress(AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        analysis = tower.compile(params, *arrays).memory_analysis()
        return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
    return None


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
