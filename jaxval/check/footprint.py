"""What a validation will hold in memory, on a device and on the host."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxval.check.timing import Pace, batch
from jaxval.evaluation.encode import Tower
from jaxval.evaluation.plan import EvalPlan, TowerParams
from jaxval.records import Params

_MEMINFO = Path("/proc/meminfo")
_CHUNKS = 3  # one is gathered and joined, while another is searched


@dataclass(frozen=True)
class Device:
    """Of each device, in bytes; None where JAX does not say.

    Attributes:
      params: the parameters.
      batch: beside them, what the program of the widest batch needs.
      room: what JAX may take.
    """

    params: int
    batch: int | None
    room: int | None

    @property
    def short(self) -> bool:
        """Whether the room is known to be too small."""
        return self.room is not None and self.params + (self.batch or 0) > self.room


@dataclass(frozen=True)
class Host:
    """In bytes; None where the system does not say.

    Attributes:
      taken: the most that this process has held, libraries and one checkpoint included.
      ahead: checkpoints restored ahead.
      vectors: of the queries, and the passages' chunks.
      free: what the machine has left.
    """

    taken: int
    ahead: int
    vectors: int
    free: int | None

    @property
    def short(self) -> bool:
        """Whether there is known to be too little left."""
        return self.free is not None and self.ahead + self.vectors > self.free


def size(params: Params) -> int:
    """Bytes of a tree of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def on_device(plan: EvalPlan, params: TowerParams, pace: Pace) -> Device:
    """Of each device of the bench, while it encodes passages."""
    stores = [group.corpus for group in plan.groups]
    tied = params.query is params.passage
    held = size(params.passage) + (0 if tied else size(params.query))
    stats = plan.devices[0].memory_stats() or {}
    widest = max(pace.timed, key=lambda shape: (shape[1], shape[0]))
    ids, lengths = batch(stores, widest, len(plan.devices))
    needs = _program(plan.passage_tower, params.passage, ids, lengths)
    return Device(held, needs, stats.get("bytes_limit"))


def on_host(plan: EvalPlan, params: int, checkpoints: int, dim: int) -> Host:
    """Of the whole process.

    Args:
      bench: what it will work on.
      params: bytes of a checkpoint's.
      checkpoints: how many are restored ahead.
      dim: components of a vector.
    """
    row = 4 * dim
    queries = max(sum(one.queries.count for one in group.sets) for group in plan.groups)
    longest = max(group.corpus.count for group in plan.groups)
    chunk = min(4 * plan.passage_tower.chunk_floats, longest * row)
    hits = queries * plan.depth * 12
    vectors = 2 * queries * row + _CHUNKS * (chunk + hits)
    return Host(_taken(), checkpoints * params, vectors, _free())


def _program(tower: Tower, params: Params, *arrays: Any) -> int | None:
    """Bytes on a device beside the parameters; compiled before, it is only looked up."""
    # Not every platform says: JAX gives None, or raises what XLA does.
    with contextlib.suppress(AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        found = tower.compile(params, *arrays).memory_analysis()
        return int(found.temp_size_in_bytes + found.output_size_in_bytes)
    return None


def _taken() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _free() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        lines = _MEMINFO.read_text().splitlines()
        (said,) = [line for line in lines if line.startswith("MemAvailable:")]
        return int(said.split()[1]) * 1024
    return None
