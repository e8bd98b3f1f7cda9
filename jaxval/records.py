"""The contracts: what one stage hands to the next. Frozen, and free of behaviour.

Arrays are named with their shapes in the docstrings. Rows are positions in document
order; ids are strings and appear only at the edges (readers and run files).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import jax
    import numpy as np

Params = Any
"""A tree (nested dictionaries) of arrays, or of jax.ShapeDtypeStruct."""

Qrels = Mapping[str, Mapping[str, int]]
"""query id -> document id -> grade."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A committed checkpoint. Its identity is (name, commit_ns): a step that is saved
    again is another checkpoint.

    Attributes:
      step: training step, read from the directory's name.
      name: the directory's name, e.g. `1200` or `checkpoint_1200`.
      commit_ns: when it was committed, in nanoseconds since the epoch.
      path: where the trainer wrote it.
      pin: where hard links keep it readable when the trainer has deleted it, if anywhere.
      stamped: whether it says itself when it was committed; else commit_ns is a file's.
    """

    step: int
    name: str
    commit_ns: int
    path: Path
    pin: Path | None = None
    stamped: bool = True

    @property
    def readable(self) -> Path:
        """Where to read it."""
        return self.pin or self.path

    @property
    def identity(self) -> tuple[str, int]:
        """What makes it this checkpoint and no other."""
        return self.name, self.commit_ns


@dataclass(frozen=True)
class PinLimit:
    """How many checkpoints, and bytes of them, may be pinned at once; None for no limit."""

    count: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class ParamsPaths:
    """Which subtrees of a checkpoint to take, e.g. `default/ema_params`; None finds them.

    Attributes:
      tree: the one that holds the encoder's parameters, or that of each of its towers.
      query, passage: those of the two towers; both or neither.
    """

    tree: str | None = None
    query: str | None = None
    passage: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A passage or a query as a file holds it.

    Attributes:
      id: unique within its collection.
      text: the text, or token ids if the file was tokenized beforehand (without
        special tokens).
      title: empty where there is none.
    """

    id: str
    text: str | tuple[int, ...]
    title: str = ""


class Bar(Protocol):
    """The progress of one piece of work; leave it as a context when the work is done."""

    def __enter__(self) -> Bar:
        """Shows the bar."""
        ...

    def __exit__(self, *_: object) -> None:
        """Takes it away."""
        ...

    def update(self, n: int) -> object:
        """Says that n more units are done."""
        ...


class Progress(Protocol):
    """Makes a Bar: what the work is, and how many units it has (None if unknown)."""

    def __call__(self, label: str, total: int | None) -> Bar:
        """A bar that is not shown yet."""
        ...


@dataclass(frozen=True)
class DatasetFiles:
    """Where a validation set lies. Each path exists; corpus may be a folder of shards."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path


class Encoder(Protocol):
    """Two pure functions over one parameter tree. Any code base can offer one.

    Shapes: ids [batch, length] int32, mask [batch, length] bool (False on padding),
    result [batch, dim], floating. Both are traced by jax.pmap, so they must be pure.
    """

    def encode_queries(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Vectors of queries, [batch, dim]."""
        ...

    def encode_passages(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Vectors of passages, [batch, dim]."""
        ...

    def abstract_params(self) -> Params:
        """The tree that the functions expect, each leaf a jax.ShapeDtypeStruct."""
        ...


class Searcher(Protocol):
    """Exact search over vectors that come in chunks and are not kept."""

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Searches a chunk: vectors [n, dim] float32, rows [n] int64."""
        ...

    def hits(self) -> Hits:
        """The best of all chunks so far."""
        ...


@dataclass(frozen=True)
class Hits:
    """The best passages of each query, best first; ties stand in document order.

    Attributes:
      scores: [queries, depth] float32; -inf beyond a query's last hit.
      rows: [queries, depth] int64; -1 beyond a query's last hit. Only where each query has
        candidates of its own may one have fewer hits than another.
    """

    scores: np.ndarray
    rows: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """[queries]: how many hits each has; they stand first."""
        counts: np.ndarray = (self.rows >= 0).sum(1)
        return counts


@dataclass(frozen=True)
class SelectBy:
    """What decides which checkpoint is best: a measure on one set, in its series.

    All that compares checkpoints does it by `worth`, so that a measure's direction counts
    in one place.
    """

    dataset: str
    series: str
    measure: str
    lower_is_better: bool = False

    def worth(self, validation: Validation) -> float:
        """The measure's mean, so signed that the better of two has the greater worth."""
        value = validation.measures[self.measure]
        return -value if self.lower_is_better else value


@dataclass(frozen=True)
class Standing:
    """How sure a validation's means are, and how they compare.

    Attributes:
      intervals: measure -> 95% interval of its mean, by bootstrap over the queries.
      against: the step that was best in the series until then; None for the first.
      p_values: measure -> of a paired randomization test against that step.
    """

    intervals: Mapping[str, tuple[float, float]]
    against: int | None
    p_values: Mapping[str, float]


SCREENED = "screened"
"""The reason of a Failure that is none: `confirm` found it not worth the whole corpus."""


@dataclass(frozen=True)
class Failure:
    """A checkpoint that has no value in a series, and why. A row of the ledger too.

    Attributes:
      checkpoint: which one; commit_ns is 0 for one that nobody saw.
      series: in which it has none.
      reason: one of errors' reasons, or `skipped` (`order=latest` went past it), SCREENED,
        or `unseen` (by the steps around it, it came and went while no jaxval ran).
      message: what a person should know.
    """

    checkpoint: Checkpoint
    series: str
    reason: str
    message: str


@dataclass(frozen=True)
class Validation:
    """What one checkpoint scored on one validation set: what a row of the ledger holds.

    Attributes:
      checkpoint: which one.
      dataset: the set's name.
      series: digest of the data and the settings; values compare only within a series.
      params_at: where in the checkpoint the parameters stood.
      passages: how many were encoded.
      queries: how many were judged.
      per_query: measure name -> [queries] float64, in the order of the set's queries.
      seconds: stage -> wall-clock seconds: restore, queries, passages, search, measures.
        Of a search only those that encoding did not hide.
      standing: None until it is compared.
    """

    checkpoint: Checkpoint
    dataset: str
    series: str
    params_at: str
    passages: int
    queries: int
    per_query: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    standing: Standing | None = None

    @property
    def measures(self) -> dict[str, float]:
        """Means over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    @property
    def rate(self) -> float:
        """Passages encoded a second."""
        return self.passages / max(self.seconds["passages"], 1e-9)


@dataclass(frozen=True)
class Ranked:
    """A validation and its place among those of its series.

    Attributes:
      validation: The validation.
      best_before: The best of its series before it, or None if it is the first.
      is_best: Whether it is better than all before it.
    """

    validation: Validation
    best_before: Validation | None
    is_best: bool


class Tracker(Protocol):
    """Shows or mirrors what the ledger holds. It never decides anything."""

    def begin(self, past: Sequence[Validation], failures: Sequence[Failure]) -> None:
        """Called once, with all that the ledger holds, so that a mirror can be made whole."""
        ...

    def record(self, validation: Validation) -> None:
        """Called after each validation's row is committed."""
        ...

    def fail(self, failure: Failure) -> None:
        """Called after each failure's row is committed."""
        ...

    def end(self) -> None:
        """Called once, however the run ends."""
        ...
