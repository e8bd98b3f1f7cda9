"""What one checkpoint scored on one validation set, as the public API returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Result:
    """The result of one validation.

    Attributes:
      dataset: The name of the validation set.
      measures: Measure -> mean over the queries, in the order of the setting `measures`.
      intervals: Measure -> 95% bootstrap interval of the mean.
      step: The training step, or None if the parameters came from memory.
      checkpoint: The path of the checkpoint; empty if the parameters came from memory.
      commit_ns: When the checkpoint was committed, in nanoseconds since the epoch, or 0.
      params_at: Where in the checkpoint the parameters were.
      passages: Number of passages encoded.
      queries: Number of judged queries.
      seconds: Stage -> wall-clock seconds.
      series: The digest of the data and the settings. Values compare only within a series.
      against: The step that was best in its series before it, or None.
      p_values: Measure -> p-value of the difference from the step `against`.
      finished: When the result was recorded, in seconds since the epoch, or 0.
      query_ids: The ids of the queries; empty in results of `SavedRun`, whose `per_query`
        reads them.
      per_query: Measure -> [queries] float64, in the order of `query_ids`; empty in results
        of `SavedRun`.
    """

    dataset: str
    measures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    step: int | None
    checkpoint: str
    commit_ns: int
    params_at: str
    passages: int
    queries: int
    seconds: Mapping[str, float]
    series: str
    against: int | None = None
    p_values: Mapping[str, float] = field(default_factory=dict)
    finished: float = 0.0
    query_ids: Sequence[str] = field(default=(), repr=False)
    per_query: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
