"""The plan of an evaluation: all that does not change from one checkpoint to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxval.checkpoints.lora import Base
from jaxval.corpus.token_store import TokenStore
from jaxval.evaluation.encode import Tower
from jaxval.metrics.ranks import RowQrels
from jaxval.records import Hits, Params, ParamsPaths, Validation


@dataclass(frozen=True)
class EvalSet:
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
class CorpusGroup:
    """A corpus and the sets that are searched in it."""

    corpus: TokenStore
    sets: tuple[EvalSet, ...]


@dataclass(frozen=True)
class EvalPlan:
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
    groups: tuple[CorpusGroup, ...]
    devices: tuple[jax.Device, ...]
    params_paths: ParamsPaths
    base: Base | None
    similarity: str
    index_dtype: str
    depth: int
    measures: tuple[Any, ...]

    @property
    def sets(self) -> list[EvalSet]:
        """Every set, round by round."""
        return [judged for group in self.groups for judged in group.sets]


@dataclass(frozen=True)
class SetResult:
    """A Validation, and the hits it was computed from, for run files."""

    validation: Validation
    hits: Hits
    judged: EvalSet
    corpus: TokenStore


@dataclass(frozen=True)
class TowerParams:
    """What each tower encodes with, on the devices: the same arrays where they are tied."""

    query: Params
    passage: Params
