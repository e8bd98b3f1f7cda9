"""Config and strategies -> a report: which part of a corpus ranks checkpoints as all of it.

Each checkpoint encodes the corpus once, and each strategy is searched among those vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxval.checkpoints.commit import committed
from jaxval.config import Config
from jaxval.corpus import readers
from jaxval.corpus.datasets import load_queries
from jaxval.corpus.runs import Candidates, Run, of_another_corpus, read_run
from jaxval.corpus.token_store import TokenStore
from jaxval.errors import CheckpointError, UserError
from jaxval.evaluation.plan import EvalPlan
from jaxval.evaluation.prepare import prepare
from jaxval.metrics.agreement import RESAMPLES, agree
from jaxval.metrics.measures import lower_is_better
from jaxval.records import Checkpoint, DatasetFiles, Progress, Text
from jaxval.sampling import bm25, dense, strategies
from jaxval.sampling.strategies import Selection, Strategy
from jaxval.sampling.subsets import Subset, Trial, attempt, subset

_LOG = logging.getLogger(__name__)
LEAST = 3
"""Checkpoints below which their order says nothing."""

Report = dict[str, Any]
"""What fidelity.json holds: see the README."""


@dataclass(frozen=True)
class PooledStrategy:
    """A strategy, and the runs that its `run` part pools.

    Attributes:
      label: as the user wrote it, but for the order of its parts.
      runs: empty if it has no such part.
    """

    label: str
    strategy: Strategy
    runs: tuple[Path, ...] = ()


def pool(text: str, runs: Sequence[Path]) -> PooledStrategy:
    """The plan of `STRATEGY`, or `STRATEGY@NAME,…` for some of the runs alone.

    A run's name is its file's, up to the first dot.

    Raises:
      UserError: it is not understood, or lacks a run.
    """
    spelled, at, names = text.partition("@")
    strategy = strategies.parse(spelled)
    if at and not strategy.run:
        raise UserError(f"`strategy={text}`: what follows @ names runs, and it has no run part")
    if not strategy.run:
        if strategy.bm25:
            bm25.check()
        return PooledStrategy(str(strategy), strategy)
    if not runs:
        raise UserError(f"`strategy={text}` needs a run: add `run=PATH`")
    wanted = [name.strip() for name in names.split(",")] if at else []
    pooled = [_named(text, name, runs) for name in wanted] or list(runs)
    return PooledStrategy(
        str(strategy) + (f"@{','.join(wanted)}" if at else ""), strategy, tuple(pooled)
    )


def _named(text: str, name: str, runs: Sequence[Path]) -> Path:
    found = [path for path in runs if path.name.partition(".")[0] == name]
    if len(found) != 1:
        names = ", ".join(path.name.partition(".")[0] for path in runs)
        what = "no `run` is" if not found else "several `run` are"
        raise UserError(f"`strategy={text}`: {what} named {name!r} (there are {names})")
    return found[0]


def choose(checkpoint_dir: str, steps: Collection[int]) -> list[Checkpoint]:
    """The committed checkpoints of these steps, in order; all if no step is named.

    Raises:
      UserError: one is not there, or they are too few.
    """
    found = committed(checkpoint_dir)
    missing = sorted(set(steps) - {checkpoint.step for checkpoint in found})
    if missing:
        there = ", ".join(str(checkpoint.step) for checkpoint in found) or "none"
        raise UserError(
            f"`steps`: {missing[0]} is not in {checkpoint_dir} (committed are: {there})"
        )
    chosen = [one for one in found if not steps or one.step in steps]
    _check_enough(len(chosen), f"`checkpoint_dir={checkpoint_dir}`: {len(chosen)} committed")
    return chosen


def run(
    config: Config,
    pools: Sequence[PooledStrategy],
    seed: int,
    checkpoints: Sequence[Checkpoint],
    ranker: Checkpoint | None,
    devices: Callable[[], Sequence[jax.Device]],
    progress: Progress,
) -> Report:
    """Puts every checkpoint to the whole corpus and to each plan's part of it.

    A checkpoint that cannot be validated is left out, with a warning.

    Args:
      config: of one validation set.
      plans: none that keeps everything; the whole corpus is always there.
      seed: of the strategies' random parts.
      checkpoints: in the order of the report.
      ranker: whose ranking the strategies' dense parts take, by an encoding of its own; None
        if there is no such part.
      devices: opened when all else has been found right.
      progress: shows what takes long.

    Raises:
      UserError: the settings or the data are at fault, or too few checkpoints are left.
    """
    (files,) = config.evaluation.datasets
    prepared = prepare(config.evaluation, devices, progress)
    plan, corpus = prepared.plan, prepared.plan.groups[0].corpus
    ranked = _rank(ranker, pools, plan, progress)
    chosen = list(_select(pools, files, seed, corpus, ranked, progress))
    whole = subset(corpus, np.arange(corpus.count))
    trials = dict(_trials(checkpoints, plan, [whole, *chosen], progress))
    _check_enough(len(trials), f"{len(trials)} of {len(checkpoints)} could be validated")
    (settings,) = prepared.settings.values()
    labels = ["full", *(each.label for each in pools)]
    measured = list(zip(labels, [whole, *chosen], strict=True))
    return _head(files, plan, seed, trials, checkpoints) | {
        "settings": settings,
        "strategies": [
            _row(label, part, number, corpus, list(trials.values()), plan.measures)
            for number, (label, part) in enumerate(measured)
        ],
    }


def _check_enough(count: int, what: str) -> None:
    if count < LEAST:
        raise UserError(f"{what}: it takes {LEAST} checkpoints to compare their orders")


def _trials(
    checkpoints: Sequence[Checkpoint],
    plan: EvalPlan,
    subsets: Sequence[Subset],
    progress: Progress,
) -> Iterator[tuple[Checkpoint, Trial]]:
    for number, checkpoint in enumerate(checkpoints, start=1):
        label = f"step {checkpoint.step} ({number} of {len(checkpoints)})"
        try:
            restored = dense.load(checkpoint, plan)
            yield checkpoint, attempt(label, restored, plan, subsets, progress)
        except CheckpointError as error:
            _LOG.warning("step %d is left out: %s", checkpoint.step, error)


def _rank(
    ranker: Checkpoint | None,
    pools: Sequence[PooledStrategy],
    plan: EvalPlan,
    progress: Progress,
) -> Candidates | None:
    if ranker is None:
        return None
    return dense.rank(ranker, plan, max(p.strategy.dense or 0 for p in pools), progress)


def _select(
    pools: Sequence[PooledStrategy],
    files: DatasetFiles,
    seed: int,
    corpus: TokenStore,
    ranked: Candidates | None,
    progress: Progress,
) -> Iterator[Subset]:
    """The subset of each plan. Plans that pool the same runs share a reading of the corpus."""
    queries = load_queries(files)

    def passages() -> Iterator[Text]:
        bar = progress(f"{files.name}: reading passages", None)
        return readers.counted(readers.read_texts(files.corpus), bar)

    depths = {path: max(p.strategy.run or 0 for p in pools) for p in pools for path in p.runs}
    runs = {path: read_run(path, depth, queries.qrels) for path, depth in depths.items()}
    for one in runs.values():
        _check_run(one, corpus)
    selections: dict[PooledStrategy, Selection] = {}
    for pooled in dict.fromkeys(each.runs for each in pools):
        group = [each for each in pools if each.runs == pooled]
        named = [runs[path] for path in pooled]
        wanted = [each.strategy for each in group]
        found = strategies.select(wanted, queries, passages, named, seed, ranked)
        selections |= zip(group, found, strict=True)
    for each in pools:
        part = _subset(corpus, selections[each])
        if part.passages == corpus.count:
            _LOG.warning("`strategy=%s` keeps the whole corpus", each.label)
        yield part


def _subset(corpus: TokenStore, selection: Selection) -> Subset:
    if selection.ids is None:
        return subset(corpus, np.arange(corpus.count))
    rows = corpus.find(sorted(selection.ids)).values()
    return subset(corpus, np.fromiter(rows, np.int64))


def _check_run(run: Run, corpus: TokenStore) -> None:
    named = sorted({passage for passages in run.hits.values() for passage in passages})
    lost = len(named) - len(corpus.find(named))
    if lost == len(named):
        raise of_another_corpus(run.path, named, "the corpus")
    if lost:
        _LOG.warning("%s: of %d passages %d are not in the corpus", run.path, len(named), lost)


def _head(
    files: DatasetFiles,
    plan: EvalPlan,
    seed: int,
    trials: Mapping[Checkpoint, Trial],
    checkpoints: Sequence[Checkpoint],
) -> Report:
    return {
        "dataset": files.name,
        "queries": len(plan.sets[0].query_ids),
        "measures": [str(measure) for measure in plan.measures],
        "steps": [checkpoint.step for checkpoint in trials],
        "left_out": [one.step for one in checkpoints if one not in trials],
        "seed": seed,
        "resamples": RESAMPLES,
    }


def _row(
    label: str,
    part: Subset,
    number: int,
    corpus: TokenStore,
    trials: Sequence[Trial],
    measures: Sequence[Any],
) -> Report:
    """A strategy's entry."""
    share = part.tokens / corpus.tokens
    seconds = _seconds(trials, number, share)
    total, whole = sum(seconds.values()), sum(_seconds(trials, 0, 1.0).values())
    names = list(trials[0].per_query[0])
    means = {
        name: [float(trial.per_query[number][name].mean()) for trial in trials]
        for name in names
    }
    return {
        "strategy": label,
        "passages": part.passages,
        "tokens": part.tokens,
        "share_of_tokens": share,
        "seconds": seconds | {"total": total},
        "share_of_time": total / whole,
        "means": means,
        "agreement": {str(each): _agreement(each, number, trials) for each in measures},
    }


def _seconds(trials: Sequence[Trial], number: int, share: float) -> dict[str, float]:
    """Stage -> seconds a checkpoint: encoding in proportion to the tokens, all else as
    measured, and restoring and the queries' encoding in full.

    Medians over the checkpoints: the first compiles, and others use the machine too.
    """
    shared = {
        stage: float(np.median([trial.shared[stage] for trial in trials]))
        for stage in ("restore", "queries", "passages")
    }
    own = float(np.median([trial.own[number] for trial in trials]))
    return shared | {"passages": shared["passages"] * share, "search": own}


def _agreement(measure: Any, number: int, trials: Sequence[Trial]) -> Report:
    """Of a measure of which lower is better, all is said of its negative."""
    sign = -1 if lower_is_better(measure) else 1
    whole, part = (
        sign * np.stack([trial.per_query[which][str(measure)] for trial in trials])
        for which in (0, number)
    )
    return asdict(agree(whole, part))
