"""Contracts between the stages: frozen records and protocols.

Docstrings give the shapes of arrays in brackets. A row is the position of a passage in its
corpus, or of a query in its set. Ids are strings and appear in readers and run files only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import jax
    import numpy as np

Params = Any
"""A tree (nested dictionaries) of arrays or of `jax.ShapeDtypeStruct`."""

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> relevance grade."""


Identity = tuple[str, int]
"""Name of a checkpoint and time of its commit, which identify it."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A committed checkpoint.

    Its identity is (name, commit_ns): a step that is saved again is another checkpoint.

    Attributes:
      step: Training step, read from the directory's name.
      name: Name of the directory, e.g. `1200` or `checkpoint_1200`.
      commit_ns: Time of its commit, in nanoseconds since the epoch.
      path: Where the trainer wrote it.
      pin: Where hard links keep it readable after the trainer has deleted it. None if it is
        not pinned.
      stamped: Whether commit_ns comes from the checkpoint's metadata. Otherwise it is the
        modification time of a file.
    """

    step: int
    name: str
    commit_ns: int
    path: Path
    pin: Path | None = None
    stamped: bool = True

    @property
    def readable(self) -> Path:
        """The path to read it from."""
        return self.pin or self.path

    @property
    def identity(self) -> Identity:
        """Name and time of commit, which identify it."""
        return self.name, self.commit_ns


@dataclass(frozen=True)
class PinLimit:
    """Limits on the checkpoints that are pinned at the same time.

    Attributes:
      count: Maximum number of checkpoints, or None for no limit.
      bytes: Maximum size of all of them, or None for no limit.
    """

    count: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class ParamsPaths:
    """Paths of the subtrees of a checkpoint that hold the parameters.

    An example is `default/ema_params`. If no path is set, the subtrees are found by their
    structure.

    Attributes:
      tree: Path of the encoder's parameters, or of a subtree that holds both towers.
      query: Path of the query tower's parameters. Set together with `passage`.
      passage: Path of the passage tower's parameters.
    """

    tree: str | None = None
    query: str | None = None
    passage: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A passage or query, as read from a file.

    Attributes:
      id: Id, unique within its collection.
      text: The text, or token ids without special tokens if the file is tokenized already.
      title: Title, or an empty string.
    """

    id: str
    text: str | tuple[int, ...]
    title: str = ""


class Bar(Protocol):
    """A progress bar, used as a context manager."""

    def __enter__(self) -> Bar:
        """Shows the bar."""
        ...

    def __exit__(self, *_: object) -> None:
        """Removes the bar."""
        ...

    def update(self, n: int) -> object:
        """Adds n units to those that are done."""
        ...


class Progress(Protocol):
    """Makes progress bars."""

    def __call__(self, label: str, total: int | None) -> Bar:
        """Returns a bar that is not shown yet.

        Args:
          label: What is being done.
          total: Number of units of work, or None if unknown.
        """
        ...


@dataclass(frozen=True)
class DatasetFiles:
    """Files of a validation set. Each path exists.

    Attributes:
      name: Name of the set.
      corpus: File of passages, or a folder of such files.
      queries: File of queries.
      qrels: File of relevance judgments.
    """

    name: str
    corpus: Path
    queries: Path
    qrels: Path


class Encoder(Protocol):
    """An encoder: two pure functions over one parameter tree, which JAX traces.

    Shapes: ids [batch, length] int32; mask [batch, length] bool, False for padding; result
    [batch, dim], floating.
    """

    def encode_queries(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the vectors of queries, [batch, dim]."""
        ...

    def encode_passages(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the vectors of passages, [batch, dim]."""
        ...

    def abstract_params(self) -> Params:
        """Returns the expected parameter tree, with `jax.ShapeDtypeStruct` leaves."""
        ...


class Searcher(Protocol):
    """Exact search over vectors that arrive in chunks and are not kept."""

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Searches a chunk.

        Args:
          vectors: Vectors of passages, [n, dim] float32.
          rows: Their rows in the corpus, [n] int64.
        """
        ...

    def hits(self) -> Hits:
        """Returns the best passages of all chunks so far."""
        ...


@dataclass(frozen=True)
class Hits:
    """The best passages of each query, the best first. Equal scores are in corpus order.

    Attributes:
      scores: [queries, depth] float32; -inf after a query's last hit.
      rows: Rows in the corpus, [queries, depth] int64; -1 after a query's last hit. The number
        of hits differs between queries only in re-ranking.
    """

    scores: np.ndarray
    rows: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of hits of each query, [queries]."""
        counts: np.ndarray = (self.rows >= 0).sum(1)
        return counts


@dataclass(frozen=True)
class SelectBy:
    """What decides which checkpoint is best: a measure on one validation set.

    Attributes:
      dataset: Name of the set.
      series: Digest of the set's series.
      measure: Name of the measure.
      lower_is_better: Whether lower values of the measure are better.
    """

    dataset: str
    series: str
    measure: str
    lower_is_better: bool = False

    def score(self, validation: Validation) -> float:
        """Returns the mean of the measure, negated if lower values are better."""
        value = validation.measures[self.measure]
        return -value if self.lower_is_better else value


@dataclass(frozen=True)
class Standing:
    """Uncertainty of a validation's means, and their comparison with the best before it.

    Attributes:
      intervals: Measure -> 95% bootstrap interval of its mean over the queries.
      against: Step that was the best of the series before, or None for the first validation.
      p_values: Measure -> p-value of a paired randomization test against that step.
    """

    intervals: Mapping[str, tuple[float, float]]
    against: int | None
    p_values: Mapping[str, float]


SCREENED = "screened"
"""Reason of a Failure for a checkpoint that `confirm` did not evaluate on the whole corpus,
because it is significantly worse than the best on the sample."""


@dataclass(frozen=True)
class Failure:
    """A checkpoint without a result in a series: a row of the ledger's failure table.

    Attributes:
      checkpoint: The checkpoint. commit_ns is 0 for reason `unseen`.
      series: Digest of the series.
      reason: The `reason` of an error, or `skipped` (a newer one was waiting,
        `order=latest`), SCREENED, or `unseen` (the steps around it show that it was saved and
        deleted while no jaxval was running).
      message: Explanation for the user.
    """

    checkpoint: Checkpoint
    series: str
    reason: str
    message: str


@dataclass(frozen=True)
class Validation:
    """The result of one checkpoint on one validation set: a row of the ledger.

    Attributes:
      checkpoint: The checkpoint.
      dataset: Name of the set.
      series: Digest of the data and the settings. Only values of one series are comparable.
      params_at: Path of the parameters in the checkpoint.
      passages: Number of encoded passages.
      queries: Number of judged queries.
      per_query: Measure -> its values, [queries] float64, in the order of the set's queries.
      seconds: Stage -> its time in seconds. The stages are restore, queries, passages, search
        and measures; of the search only the time that does not overlap with encoding.
      standing: Its comparison with the best before it, or None if not yet compared.
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
        """Measure -> mean over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    @property
    def rate(self) -> float:
        """Passages encoded per second."""
        return self.passages / max(self.seconds["passages"], 1e-9)


@dataclass(frozen=True)
class Ranked:
    """A validation and how it ranks among those of its series before it.

    Attributes:
      validation: The validation.
      best_before: Best validation of its series before it, or None if it is the first.
      is_best: Whether it is better than all before it.
    """

    validation: Validation
    best_before: Validation | None
    is_best: bool


@dataclass(frozen=True)
class TrackedRun:
    """What trackers may need to know of a run.

    Attributes:
      directory: The output directory.
      datasets: Digest of each series of the run -> name of its validation set, in the order
        in which the sets are evaluated.
      measures: Names of the measures.
      select_by: What decides which checkpoint is best.
      sample: What decides it on the sample that screens checkpoints, or None without
        screening.
      patience: Number of validations without a significant gain after which the trainer is
        told to stop, or None for no such limit.
    """

    directory: Path
    datasets: Mapping[str, str]
    measures: tuple[str, ...]
    select_by: SelectBy
    sample: SelectBy | None = None
    patience: int | None = None


class Tracker(Protocol):
    """Shows or mirrors what the ledger holds.

    A tracker makes no decisions that affect the run.
    """

    def begin(self, past: Sequence[Ranked], failures: Sequence[Failure]) -> None:
        """Starts from the ledger. Called once, before `record` and `fail`.

        Args:
          past: Every validation in the ledger, in the order of their commits, also those of
            series that do not belong to this run.
          failures: Every failure in the ledger.
        """
        ...

    def record(self, ranked: Ranked) -> None:
        """Records a validation. Called after its row is committed."""
        ...

    def fail(self, failure: Failure) -> None:
        """Records a failure. Called after its row is committed."""
        ...

    def end(self) -> None:
        """Ends the tracker. Called once, also if the run fails."""
        ...


class Source(Protocol):
    """Where a session takes its checkpoints from: a queue that a watcher fills."""

    def waiting(self) -> list[Checkpoint]:
        """Returns the queued checkpoints, the next one first."""
        ...

    def next(self, timeout: float) -> Checkpoint | None:
        """Returns the next checkpoint without removing it from the queue.

        Args:
          timeout: Maximum time to wait for one, in seconds.

        Returns:
          The checkpoint, or None if the queue is still empty.
        """
        ...

    def done(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint from the queue and releases its pin."""
        ...

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint from the queue and keeps its pin."""
        ...

    def need(self, items: Collection[str]) -> None:
        """Restricts later pins to these items of a checkpoint."""
        ...

    def why_unpinned(self, checkpoint: Checkpoint) -> str:
        """Returns why a checkpoint is not pinned, or an empty string if it is."""
        ...

    @property
    def left_behind(self) -> Sequence[Checkpoint]:
        """Checkpoints that an earlier run pinned and did not validate."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the queue is empty and the trainer will write no more checkpoints."""
        ...
