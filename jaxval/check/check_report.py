"""What was found, as the lines of a report."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxval.check.findings import Finding
from jaxval.check.footprint import Device, Host
from jaxval.check.newest import Newest
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
class Texts:
    """The queries or the passages of a set.

    Attributes:
      store: all of them.
      recipe: how they became tokens.
      shapes: the batches that they are cut into.
      cut: how many are longer than may be; of passages, how many are as long as may be.
    """

    store: TokenStore
    recipe: Recipe
    shapes: Mapping[Shape, int]
    cut: int

    @property
    def padding(self) -> float:
        """The share of the batches' tokens that are none."""
        whole = sum(rows * width * count for (rows, width), count in self.shapes.items())
        return 1 - self.store.tokens / whole


@dataclass(frozen=True)
class Vectors:
    """What the sample of a set was encoded to.

    Attributes:
      queries, passages: how many there are.
      dim: components of each.
      lengths: the shortest and the longest.
      likeness: the mean cosine of two queries, and of two passages.
    """

    queries: int
    passages: int
    dim: int
    lengths: tuple[float, float]
    likeness: tuple[float, float]


@dataclass(frozen=True)
class SetReport:
    """A set.

    Attributes:
      candidates: passages that `rerank` scores for a query; None for all.
      vectors, ranking: None where nothing could be encoded, or judged.
    """

    name: str
    queries: Texts
    passages: Texts
    candidates: float | None = None
    vectors: Vectors | None = None
    ranking: Ranking | None = None


@dataclass(frozen=True)
class Leg:
    """What a corpus costs a checkpoint, in seconds; `names` are the sets on it."""

    names: tuple[str, ...]
    queries: float
    passages: float
    search: float

    @property
    def total(self) -> float:
        """Of all."""
        return self.queries + self.passages + self.search


@dataclass(frozen=True)
class Times:
    """What a checkpoint costs, in seconds.

    Attributes:
      restore: reading it and copying it to the devices; None if there was none.
      legs: a corpus each.
      first: what the first one of a run takes beside that, for the programs.
      shapes: how many programs.
      busy: where other work makes all this uncertain, how many wait for a core.
      screened: whether `confirm` puts it to the last corpus only if it may be the best.
    """

    restore: float | None
    legs: Sequence[Leg]
    first: float
    shapes: int
    screened: bool
    busy: float | None = None


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
      newest, bench, select_by: what is validated, by what, and which is best.
      sets, times, device, host: what that takes.
      kept: what this look has made that a run will find done.
      doubts: what looks wrong.
    """

    newest: Newest
    plan: EvalPlan
    select_by: SelectBy
    sets: Sequence[SetReport]
    times: Times
    device: Device
    host: Host
    kept: Sequence[str]
    doubts: Sequence[Finding] = ()

    @property
    def status(self) -> int:
        """2 if there is an error, else 0."""
        return 2 if any(doubt.error for doubt in self.doubts) else 0


def lines(report: Report) -> Iterator[str]:
    """The report, what is doubtful last."""
    yield "checkpoint"
    yield from _rows(_checkpoint(report.newest, report.plan.abstract_params))
    yield "validation"
    yield from _rows(_validation(report))
    for seen in report.sets:
        yield f"set {seen.name}"
        yield from _rows(_set(seen))
    yield "time for a checkpoint (estimated from timed batches)"
    yield from _rows(_times(report.times))
    yield "devices and memory"
    yield from _rows(_memory(report))
    yield _verdict(report.doubts)
    yield from sorted(map(str, report.doubts), key=lambda line: line.startswith("error"))


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"  {label:<{_WIDTH}} {text}" for label, text in rows)


def _checkpoint(newest: Newest, params: Params) -> Iterator[tuple[str, str]]:
    one, restored = newest.checkpoint, newest.restored
    if one is None:
        yield "newest", f"none is committed in {newest.place}"
    else:
        yield "newest", f"step {one.step}, of {newest.count} committed: {one.path}"
    if restored is not None:
        yield "parameters", f"at {restored.found_at}"
        yield from (("", remark) for remark in restored.remarks)
        yield "towers", "each its own" if restored.untied else "one for both"
    yield from _leaves(params, 1 if restored is None or not restored.untied else 2)


def _leaves(params: Params, towers: int) -> Iterator[tuple[str, str]]:
    """Shapes and dtypes as devices hold them."""
    leaves = flatten(params)
    numbers: collections.Counter[str] = collections.Counter()
    for leaf in leaves.values():
        numbers[str(leaf.dtype)] += leaf.size
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in numbers.most_common())
    yield "tower" if towers == 1 else "each tower", f"{len(leaves)} arrays, {dtypes}"
    largest = sorted(leaves.items(), key=lambda item: -item[1].size)[:_LARGEST]
    for label, (path, leaf) in zip(("largest", *[""] * _LARGEST), largest, strict=False):
        yield label, f"{show(path)} {list(leaf.shape)} {leaf.dtype}"


def _validation(report: Report) -> Iterator[tuple[str, str]]:
    plan, select_by = report.plan, report.select_by
    measures = ", ".join(map(str, plan.measures))
    yield "measures", f"{measures}, of the {plan.depth:,} best by {plan.similarity}"
    lower = " (lower is better)" * select_by.lower_is_better
    yield "best by", f"{select_by.measure} on {select_by.dataset}{lower}"


def _set(seen: SetReport) -> Iterator[tuple[str, str]]:
    yield from _texts("queries", "are cut", seen.queries)
    yield from _texts("passages", "reach that", seen.passages)
    if seen.candidates is not None:
        yield "re-ranking", f"{seen.candidates:.0f} candidates a query; no other is encoded"
    if (found := seen.vectors) is None:
        yield "vectors", "none: see below"
        return
    low, high = found.lengths
    yield (
        "vectors",
        f"{found.queries} queries and {found.passages} passages: {found.dim} components, length"
        f" {low:.4g} to {high:.4g}",
    )
    yield "mean cosine", "of two queries {:.3f}, of two passages {:.3f}".format(*found.likeness)
    if seen.ranking is not None:
        yield "ranking", _ranking(seen.ranking)


def _texts(kind: str, fate: str, texts: Texts) -> Iterator[tuple[str, str]]:
    store, recipe = texts.store, texts.recipe
    yield (
        kind,
        f"{store.count:,} of {store.tokens / store.count:.0f} tokens, at most {recipe.max_len};"
        f" {texts.cut:,} ({texts.cut / store.count:.1%}) {fate}",
    )
    yield "", f"text {recipe.prefix + recipe.template!r}"
    buckets = " ".join(f"{bucket.width}:{bucket.count:,}" for bucket in store.buckets)
    batches = sum(texts.shapes.values())
    yield "", f"width:texts {buckets}"
    yield "", f"{batches:,} batches of {len(texts.shapes)} shapes, {texts.padding:.1%} padding"


def _ranking(ranking: Ranking) -> str:
    said = f"{MEASURE} {ranking.mean:.3f} of these; shuffled {ranking.chance:.3f}"
    few = "too few to tell it from chance"
    return f"{said}, {few if ranking.luck >= 1 else f'at most {ranking.luck:.3f}'}"


def _times(times: Times) -> Iterator[tuple[str, str]]:
    if times.restore is not None:
        yield "restoring", _seconds(times.restore)
    for leg in times.legs:
        yield (
            ", ".join(leg.names),
            f"{_seconds(leg.total)}: queries {_seconds(leg.queries)}, passages"
            f" {_seconds(leg.passages)}, search {_seconds(leg.search)}",
        )
    total = (times.restore or 0.0) + sum(leg.total for leg in times.legs)
    if times.screened:
        sampled = total - times.legs[-1].total
        yield "in all", f"{_seconds(sampled)} if screened out, {_seconds(total)} if confirmed"
    else:
        yield "in all", _seconds(total)
    yield (
        "the first one",
        f"{_seconds(times.first)} more, to trace and load {times.shapes} programs",
    )
    if times.busy is not None:
        yield (
            "uncertain",
            f"other work had {times.busy:.1f} processes a core waiting or running",
        )


def _memory(report: Report) -> Iterator[tuple[str, str]]:
    plan = report.plan
    kinds = collections.Counter(f"{one.platform} ({one.device_kind})" for one in plan.devices)
    yield "devices", ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    yield "batch", f"{plan.passage_tower.batch_tokens:,} tokens a device"
    device, host = report.device, report.host
    batch = (
        "a batch of unknown size" if device.batch is None else f"a batch {_bytes(device.batch)}"
    )
    room = "" if device.room is None else f", of {_bytes(device.room)}"
    yield "on each", f"parameters {_bytes(device.params)}, {batch}{room}"
    free = "" if host.free is None else f"; {_bytes(host.free)} are free"
    yield (
        "on the host",
        f"{_bytes(host.taken)} as now, {_bytes(host.ahead)} restored ahead, vectors"
        f" {_bytes(host.vectors)}{free}",
    )
    yield from zip(("kept", *[""] * len(report.kept)), report.kept, strict=False)


def _verdict(doubts: Sequence[Finding]) -> str:
    errors = sum(doubt.error for doubt in doubts)
    counts = {"error": errors, "warning": len(doubts) - errors}
    said = [f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items() if n]
    return " and ".join(said) or "nothing looks wrong"


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
