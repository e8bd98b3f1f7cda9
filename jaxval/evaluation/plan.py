"""The plan of an evaluation: all that does not change from one checkpoint to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxval.checkpoints.lora import Base
from jaxval.corpus.token_store import TokenStore
from jaxval.evaluation.encode import Tower
from jaxval.metrics.ranks import Judgments
from jaxval.records import Checkpoint, Hits, Params, ParamsPaths, Validation


@dataclass(frozen=True)
class EvalSet:
    """The queries and judgments of one validation set.

    Attributes:
      name: The name of the set.
      series: The digest of the data and the settings.
      queries: The tokenized queries, in the order of `query_ids`.
      query_ids: The ids of the judged queries.
      judgments: The judgments, in the order of `query_ids` and over the corpus's rows.
      candidates: With re-ranking, the rows of each query's candidates, [n] int64 each. None
        searches the whole corpus.
    """

    name: str
    series: str
    queries: TokenStore
    query_ids: tuple[str, ...]
    judgments: Judgments
    candidates: tuple[np.ndarray, ...] | None = None


@dataclass(frozen=True)
class CorpusGroup:
    """A corpus and the sets that are searched in it.

    Attributes:
      corpus: The tokenized passages.
      sets: The sets. Their results need one encoding of the corpus.
    """

    corpus: TokenStore
    sets: tuple[EvalSet, ...]


@dataclass(frozen=True)
class EvalPlan:
    """What every checkpoint is evaluated on, and how.

    Attributes:
      abstract_params: The tree to find in a checkpoint, each leaf a jax.ShapeDtypeStruct in
        the dtype that the device holds.
      query_tower: Encodes queries on the devices.
      passage_tower: Encodes passages on the devices.
      groups: The corpora and their sets.
      devices: The devices of both towers.
      params_paths: The subtrees of a checkpoint that the user names.
      base: The parameters that the checkpoints hold adapters of. None if the checkpoints
        hold whole parameters.
      similarity: `dot` or `cosine`.
      index_dtype: The dtype that vectors are rounded to before they are compared.
      depth: Number of hits for each query.
      measures: The measures, as `metrics.measures.parse` returns them.
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
        """The sets of all groups, in order."""
        return [eval_set for group in self.groups for eval_set in group.sets]


@dataclass(frozen=True)
class SetResult:
    """The result of one encoder on one set.

    Attributes:
      eval_set: The set.
      corpus: The corpus that was searched.
      hits: The passages that were found for each query.
      per_query: Measure name -> [queries] float64, in the order of the set's queries.
      params_at: Where the parameters were found.
      seconds: Stage -> wall-clock seconds: restore, queries, passages, search, measures.
    """

    eval_set: EvalSet
    corpus: TokenStore
    hits: Hits
    per_query: Mapping[str, np.ndarray]
    params_at: str
    seconds: Mapping[str, float]

    @property
    def measures(self) -> dict[str, float]:
        """Measure name -> mean over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    def validation(self, checkpoint: Checkpoint) -> Validation:
        """Returns the result as the validation of a checkpoint, without the hits."""
        return Validation(
            checkpoint=checkpoint,
            dataset=self.eval_set.name,
            series=self.eval_set.series,
            params_at=self.params_at,
            passages=self.corpus.count,
            queries=len(self.eval_set.query_ids),
            per_query=self.per_query,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class TowerParams:
    """The parameters of each tower, on the devices. Tied towers share the same arrays.

    Attributes:
      query: The parameters of the query tower.
      passage: The parameters of the passage tower.
    """

    query: Params
    passage: Params
