"""The report of `check`, as records and as lines of text."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxval.check.findings import Finding
from jaxval.check.footprint import DeviceMemory, HostMemory
from jaxval.check.newest import NewestCheckpoint
from jaxval.check.probe import MEASURE, Ranking
from jaxval.check.timing import Shape
from jaxval.checkpoints.trees import flatten, show
from jaxval.corpus.token_store import Recipe, TokenStore
from jaxval.evaluation.plan import EvalPlan
from jaxval.records import Params, SelectBy

_WIDTH = 15  # of the labels
_LARGEST = 3
_GIB, _MIB = 2**30, 2**20


@dataclass(frozen=True)
class TextStats:
    """The queries or the passages of a set.

    Attributes:
      store: All of them, tokenized.
      recipe: How they became tokens.
      shapes: Batch shape -> number of batches.
      truncated: Number of queries that are truncated; of passages, the number that reach the
        limit.
    """

    store: TokenStore
    recipe: Recipe
    shapes: Mapping[Shape, int]
    truncated: int

    @property
    def padding(self) -> float:
        """Share of the batches' tokens that are padding."""
        tokens = sum(rows * width * count for (rows, width), count in self.shapes.items())
        return 1 - self.store.tokens / tokens


@dataclass(frozen=True)
class VectorStats:
    """The vectors of a sample of a set.

    Attributes:
      queries: Number of queries in the sample.
      passages: Number of passages in the sample.
      dim: Dimension of the vectors.
      norms: Norms of the shortest and of the longest vector.
      query_cosine: Mean cosine of two queries.
      passage_cosine: Mean cosine of two passages.
    """

    queries: int
    passages: int
    dim: int
    norms: tuple[float, float]
    query_cosine: float
    passage_cosine: float


@dataclass(frozen=True)
class SetReport:
    """What was found about a set.

    Attributes:
      name: The set's name.
      queries: Its queries.
      passages: Its passages.
      candidates: Mean number of passages that `rerank` scores per query; None for all.
      vectors: Vectors of a sample; None if nothing could be encoded.
      ranking: Ranking of the sample; None if nothing could be encoded or judged.
    """

    name: str
    queries: TextStats
    passages: TextStats
    candidates: float | None = None
    vectors: VectorStats | None = None
    ranking: Ranking | None = None


@dataclass(frozen=True)
class CorpusTime:
    """Time that a checkpoint takes for one corpus, in seconds.

    Attributes:
      datasets: Names of the sets that are searched in the corpus.
      queries: For encoding the queries.
      passages: For encoding the passages.
      search: For the search.
    """

    datasets: tuple[str, ...]
    queries: float
    passages: float
    search: float

    @property
    def total(self) -> float:
        """Sum of all stages."""
        return self.queries + self.passages + self.search


@dataclass(frozen=True)
class CheckpointTime:
    """Time that a checkpoint takes, in seconds.

    Attributes:
      restore: For reading it and copying it to the devices; None if there was no checkpoint.
      corpora: For each corpus.
      startup: Additional time of a run's first checkpoint, for the programs.
      programs: Number of programs.
      screened: Whether `confirm` validates only some checkpoints on the last corpus.
      load: The machine's load per core, if it is too high for exact timings; else None.
    """

    restore: float | None
    corpora: Sequence[CorpusTime]
    startup: float
    programs: int
    screened: bool
    load: float | None = None


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
      newest: The newest checkpoint.
      plan: How it would be validated.
      select_by: Which checkpoint is best.
      sets: What was found about each set.
      times: How long a checkpoint takes.
      device: Memory of each device.
      host: Memory of the host.
      cached: What `check` has written that a run will use.
      findings: What looks wrong.
    """

    newest: NewestCheckpoint
    plan: EvalPlan
    select_by: SelectBy
    sets: Sequence[SetReport]
    times: CheckpointTime
    device: DeviceMemory
    host: HostMemory
    cached: Sequence[str]
    findings: Sequence[Finding] = ()

    @property
    def status(self) -> int:
        """Exit status: 2 if there is an error, else 0."""
        return 2 if any(finding.error for finding in self.findings) else 0


def lines(report: Report) -> Iterator[str]:
    """Yields the lines of the report: first the facts, then the warnings, then the errors."""
    yield "checkpoint"
    yield from _rows(_checkpoint(report.newest, report.plan.abstract_params))
    yield "validation"
    yield from _rows(_validation(report))
    for set_report in report.sets:
        yield f"set {set_report.name}"
        yield from _rows(_set(set_report))
    yield "time per checkpoint (estimated from timed batches)"
    yield from _rows(_times(report.times))
    yield "devices and memory"
    yield from _rows(_memory(report))
    yield _summary(report.findings)
    yield from map(str, sorted(report.findings, key=lambda finding: finding.error))


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"  {label:<{_WIDTH}} {text}" for label, text in rows)


def _checkpoint(newest: NewestCheckpoint, params: Params) -> Iterator[tuple[str, str]]:
    checkpoint, restored = newest.checkpoint, newest.restored
    if checkpoint is None:
        yield "newest", f"none committed in {newest.directory}"
    else:
        yield "newest", f"step {checkpoint.step} ({newest.count} committed): {checkpoint.path}"
    if restored is not None:
        yield "parameters", f"at {restored.found_at}"
        yield from (("", remark) for remark in restored.remarks)
        yield "towers", "a tree for each" if restored.untied else "one tree for both"
    yield from _leaves(params, untied=restored is not None and restored.untied)


def _leaves(params: Params, *, untied: bool) -> Iterator[tuple[str, str]]:
    """Yields the shapes and dtypes of a tower's parameters on the devices."""
    leaves = flatten(params)
    sizes: collections.Counter[str] = collections.Counter()
    for leaf in leaves.values():
        sizes[str(leaf.dtype)] += leaf.size
    values = ", ".join(f"{count:,} {dtype}" for dtype, count in sizes.most_common())
    yield "each tower" if untied else "tower", f"{len(leaves)} arrays with {values} values"
    largest = sorted(leaves.items(), key=lambda item: -item[1].size)[:_LARGEST]
    for label, (path, leaf) in zip(("largest", *[""] * _LARGEST), largest, strict=False):
        yield label, f"{show(path)} {list(leaf.shape)} {leaf.dtype}"


def _validation(report: Report) -> Iterator[tuple[str, str]]:
    plan, select_by = report.plan, report.select_by
    measures = ", ".join(map(str, plan.measures))
    yield "measures", f"{measures}, on the top {plan.depth:,} passages by {plan.similarity}"
    lower = " (lower is better)" * select_by.lower_is_better
    yield "best by", f"{select_by.measure} on {select_by.dataset}{lower}"


def _set(report: SetReport) -> Iterator[tuple[str, str]]:
    yield from _texts("queries", "are truncated", report.queries)
    yield from _texts("passages", "reach the limit", report.passages)
    if report.candidates is not None:
        yield (
            "re-ranking",
            f"{report.candidates:.0f} candidates per query; other passages are not encoded",
        )
    if (vectors := report.vectors) is None:
        yield "vectors", "not computed, see below"
        return
    shortest, longest = vectors.norms
    yield (
        "vectors",
        f"{vectors.queries} queries and {vectors.passages} passages encoded: dimension"
        f" {vectors.dim}, norms from {shortest:.4g} to {longest:.4g}",
    )
    yield (
        "mean cosine",
        f"of two queries {vectors.query_cosine:.3f}, of two passages"
        f" {vectors.passage_cosine:.3f}",
    )
    if report.ranking is not None:
        yield "ranking", _ranking(report.ranking)


def _texts(kind: str, limited: str, stats: TextStats) -> Iterator[tuple[str, str]]:
    store, recipe = stats.store, stats.recipe
    yield (
        kind,
        f"{store.count:,} of {store.tokens / store.count:.0f} tokens on average, at most"
        f" {recipe.max_len}; {stats.truncated:,} ({stats.truncated / store.count:.1%})"
        f" {limited}",
    )
    yield "", f"text {recipe.prefix + recipe.template!r}"
    buckets = " ".join(f"{bucket.width}:{bucket.count:,}" for bucket in store.buckets)
    batches = sum(stats.shapes.values())
    yield "", f"texts per width: {buckets}"
    yield "", f"{batches:,} batches of {len(stats.shapes)} shapes, {stats.padding:.1%} padding"


def _ranking(ranking: Ranking) -> str:
    ranked = f"{MEASURE} {ranking.mean:.3f} on this sample"
    by_chance = f"random rankings {ranking.chance:.3f} on average"
    if ranking.luck >= 1:
        return f"{ranked}; {by_chance}, too few texts to compare"
    return f"{ranked}; {by_chance}, {ranking.luck:.3f} at most"


def _times(times: CheckpointTime) -> Iterator[tuple[str, str]]:
    if times.restore is not None:
        yield "restore", _seconds(times.restore)
    for corpus in times.corpora:
        yield (
            ", ".join(corpus.datasets),
            f"{_seconds(corpus.total)}: queries {_seconds(corpus.queries)}, passages"
            f" {_seconds(corpus.passages)}, search {_seconds(corpus.search)}",
        )
    total = (times.restore or 0.0) + sum(corpus.total for corpus in times.corpora)
    if times.screened:
        sampled = total - times.corpora[-1].total
        yield "total", f"{_seconds(sampled)} if screened out, {_seconds(total)} if confirmed"
    else:
        yield "total", _seconds(total)
    yield (
        "startup",
        f"{_seconds(times.startup)} more for the first checkpoint, to trace and load"
        f" {times.programs} programs",
    )
    if times.load is not None:
        yield (
            "uncertain",
            f"other processes used the machine: load average {times.load:.1f} per core",
        )


def _memory(report: Report) -> Iterator[tuple[str, str]]:
    plan = report.plan
    kinds = collections.Counter(
        f"{device.platform} ({device.device_kind})" for device in plan.devices
    )
    yield "devices", ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    yield "batch", f"{plan.passage_tower.batch_tokens:,} tokens per device"
    device, host = report.device, report.host
    batch = "of unknown size" if device.batch is None else _bytes(device.batch)
    limit = "" if device.limit is None else f"; limit {_bytes(device.limit)}"
    yield "per device", f"parameters {_bytes(device.params)}, batch {batch}{limit}"
    yield (
        "host",
        f"this process {_bytes(host.peak)}, prefetched checkpoints {_bytes(host.prefetched)},"
        f" vectors {_bytes(host.vectors)}; {_bytes(host.available)} available",
    )
    yield from zip(("cached", *[""] * len(report.cached)), report.cached, strict=False)


def _summary(findings: Sequence[Finding]) -> str:
    errors = sum(finding.error for finding in findings)
    counts = {"error": errors, "warning": len(findings) - errors}
    parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
    return " and ".join(parts) or "no problems found"


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _bytes(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.1f} MiB"
