"""Compares sampled corpora with the whole corpus: which sample ranks checkpoints the same?

Each checkpoint encodes the corpus once; each strategy is searched among those vectors.
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
from jaxval.config import Evaluation
from jaxval.corpus.datasets import load_queries
from jaxval.corpus.runs import Candidates
from jaxval.corpus.token_store import TokenStore
from jaxval.errors import CheckpointError, UserError
from jaxval.evaluation.plan import EvalPlan
from jaxval.evaluation.prepare import prepare
from jaxval.metrics.agreement import RESAMPLES, agree
from jaxval.metrics.measures import lower_is_better
from jaxval.records import Checkpoint, DatasetFiles, Progress
from jaxval.sampling import dense, pooled
from jaxval.sampling.fidelity_report import Report
from jaxval.sampling.pooled import PooledStrategy
from jaxval.sampling.strategies import Selection, check_step
from jaxval.sampling.subsets import Subset, Trial, attempt, subset

_LOG = logging.getLogger(__name__)
LEAST = 3
"""Minimum number of checkpoints: the order of fewer says nothing."""


@dataclass(frozen=True)
class Comparison:
    """Which samples are compared, on which checkpoints.

    Attributes:
      pools: the strategies; none that keeps everything, the whole corpus is always added.
      seed: seed of the strategies' random parts.
      checkpoints: in the order of the report.
      ranker: the checkpoint whose ranking the `dense` parts take, by an encoding of the
        corpus in addition; None without such a part.
    """

    pools: tuple[PooledStrategy, ...]
    seed: int
    checkpoints: tuple[Checkpoint, ...]
    ranker: Checkpoint | None


def plan_comparison(
    evaluation: Evaluation,
    checkpoint_dir: str,
    strategies: Sequence[str],
    runs: Sequence[Path],
    seed: int,
    steps: Collection[int],
    dense_step: int | None,
) -> Comparison:
    """Resolves the settings of a comparison; reads no corpus.

    Args:
      evaluation: how a checkpoint is validated.
      checkpoint_dir: the trainer's directory.
      strategies: texts, as `pooled.parse` reads them.
      runs: the run files that they pool.
      seed: seed of the strategies' random parts.
      steps: steps of the checkpoints; empty for all that are committed.
      dense_step: step of the checkpoint that ranks for the `dense` parts.

    Raises:
      UserError: a setting cannot be used, or there are too few checkpoints.
    """
    if len(evaluation.datasets) > 1:
        raise UserError("`dataset` is repeated: fidelity compares samples of one set")
    if evaluation.search.rerank:
        raise UserError("`rerank` scores no corpus: leave it out, fidelity compares corpora")
    if not strategies:
        raise UserError("`strategy` is not set: add one or more, as for jaxval.sample")
    pools = pooled.parse_all(strategies, runs)
    checkpoints = _choose(checkpoint_dir, steps)
    check_step((pool.strategy for pool in pools), dense_step)
    ranker = None if dense_step is None else dense.pick(checkpoint_dir, dense_step)
    return Comparison(tuple(pools), seed, tuple(checkpoints), ranker)


def compare(
    evaluation: Evaluation,
    comparison: Comparison,
    open_devices: Callable[[], Sequence[jax.Device]],
    progress: Progress,
) -> Report:
    """Validates every checkpoint on the whole corpus and on each strategy's part of it.

    A checkpoint that cannot be validated is left out, with a warning.

    Args:
      evaluation: how a checkpoint is validated, on one set.
      comparison: the strategies and checkpoints.
      open_devices: called when all settings have been checked.
      progress: shows what takes long.

    Raises:
      UserError: the settings or the data are at fault, or too few checkpoints are left.
    """
    (files,) = evaluation.datasets
    pools, checkpoints = comparison.pools, comparison.checkpoints
    prepared = prepare(evaluation, open_devices, progress)
    plan, corpus = prepared.plan, prepared.plan.groups[0].corpus
    queries = load_queries(files)
    ranked = _rank(comparison, plan, progress)
    selections = pooled.select(pools, files, queries, corpus, comparison.seed, ranked, progress)
    whole = subset(corpus, np.arange(corpus.count))
    parts = [whole, *_subsets(pools, selections, corpus)]
    trials = dict(_trials(checkpoints, plan, parts, progress))
    _check_enough(len(trials), f"{len(trials)} of {len(checkpoints)} could be validated")
    (settings,) = prepared.settings.values()
    labels = ["full", *(pool.label for pool in pools)]
    return _head(files, plan, comparison.seed, trials, checkpoints) | {
        "settings": settings,
        "strategies": [
            _row(label, part, number, corpus, list(trials.values()), plan.measures)
            for number, (label, part) in enumerate(zip(labels, parts, strict=True))
        ],
    }


def _choose(checkpoint_dir: str, steps: Collection[int]) -> list[Checkpoint]:
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


def _rank(comparison: Comparison, plan: EvalPlan, progress: Progress) -> Candidates | None:
    if comparison.ranker is None:
        return None
    depth = max(pool.strategy.dense or 0 for pool in comparison.pools)
    return dense.rank(comparison.ranker, plan, depth, progress)


def _subsets(
    pools: Sequence[PooledStrategy], selections: Sequence[Selection], corpus: TokenStore
) -> Iterator[Subset]:
    for pool, selection in zip(pools, selections, strict=True):
        part = _subset(corpus, selection)
        if part.passages == corpus.count:
            _LOG.warning("`strategy=%s` keeps the whole corpus", pool.label)
        yield part


def _subset(corpus: TokenStore, selection: Selection) -> Subset:
    if selection.ids is None:
        return subset(corpus, np.arange(corpus.count))
    rows = corpus.find(sorted(selection.ids)).values()
    return subset(corpus, np.fromiter(rows, np.int64))


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
