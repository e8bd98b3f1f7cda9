"""Compares sampled corpora with the whole corpus: which sample ranks checkpoints the same?

Each checkpoint encodes the corpus once. Each sample is searched in those vectors.
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
"""Minimum number of checkpoints: the order of fewer has no meaning."""


@dataclass(frozen=True)
class Comparison:
    """Which samples are compared, on which checkpoints.

    Attributes:
      pools: The strategies, without `full`: the whole corpus is always included.
      seed: The seed of the strategies' random parts.
      checkpoints: The checkpoints, in the order of the report.
      ranker: The checkpoint that ranks for the strategies' dense parts, for which it encodes
        the corpus once more. None if there are no such parts.
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
    """Parses and checks the settings of a comparison. Reads no corpus.

    Args:
      evaluation: How a checkpoint is evaluated.
      checkpoint_dir: The trainer's directory.
      strategies: The strategies, as `pooled.parse` reads them.
      runs: The run files that they pool.
      seed: The seed of the strategies' random parts.
      steps: Steps of the checkpoints. Empty for all committed checkpoints.
      dense_step: Step of the checkpoint that ranks for the strategies' dense parts.

    Raises:
      UserError: A setting cannot be used, or there are too few checkpoints.
    """
    if len(evaluation.datasets) > 1:
        raise UserError(
            "`dataset` is given more than once: fidelity compares samples of one set"
        )
    if evaluation.search.rerank:
        raise UserError("`rerank` scores no corpus, and fidelity compares corpora: remove it")
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
    """Evaluates every checkpoint on the whole corpus and on each strategy's sample.

    A checkpoint that cannot be evaluated is left out, with a warning.

    Args:
      evaluation: How a checkpoint is evaluated, on one set.
      comparison: The strategies and the checkpoints.
      open_devices: Opens the devices. Called when the settings and texts have been checked.
      progress: Shows reading, tokenization and encoding.

    Raises:
      UserError: The settings or the data are wrong, or too few checkpoints are left.
    """
    pools, checkpoints = comparison.pools, comparison.checkpoints
    prepared = prepare(evaluation, open_devices, progress)
    plan, (prepared_set,) = prepared.plan, prepared.sets
    files, corpus = prepared_set.files, prepared_set.corpus
    ranked = _rank(comparison, plan, progress)
    selections = pooled.select(
        pools, files, prepared_set.queries, corpus, comparison.seed, ranked, progress
    )
    whole = subset(corpus, np.arange(corpus.count))
    parts = [whole, *_subsets(pools, selections, corpus)]
    trials = dict(_trials(checkpoints, plan, parts, progress))
    _check_enough(
        len(trials), f"{len(trials)} of {len(checkpoints)} checkpoints could be evaluated"
    )
    labels = ["full", *(pool.label for pool in pools)]
    return _head(files, plan, comparison.seed, trials, checkpoints) | {
        "settings": prepared_set.settings,
        "strategies": [
            _row(label, part, number, corpus, list(trials.values()), plan.measures)
            for number, (label, part) in enumerate(zip(labels, parts, strict=True))
        ],
    }


def _choose(checkpoint_dir: str, steps: Collection[int]) -> list[Checkpoint]:
    """Returns the committed checkpoints of these steps, or all, in the order of steps.

    Raises:
      UserError: A checkpoint is missing, or there are too few.
    """
    checkpoints = committed(checkpoint_dir)
    missing = sorted(set(steps) - {checkpoint.step for checkpoint in checkpoints})
    if missing:
        names = ", ".join(str(checkpoint.step) for checkpoint in checkpoints) or "none"
        raise UserError(
            f"`steps`: {missing[0]} is not in {checkpoint_dir} (committed steps: {names}):"
            " name committed steps"
        )
    if steps:
        checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint.step in steps]
    count = len(checkpoints)
    _check_enough(count, f"`checkpoint_dir={checkpoint_dir}`: {count} committed checkpoints")
    return checkpoints


def _check_enough(count: int, problem: str) -> None:
    if count < LEAST:
        raise UserError(f"{problem}: comparing their orders takes {LEAST} checkpoints or more")


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
        "left_out": [checkpoint.step for checkpoint in checkpoints if checkpoint not in trials],
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
    """Returns the entry of a strategy.

    Args:
      label: The strategy's text.
      part: The strategy's sample.
      number: The index of the sample in each trial; 0 is the whole corpus.
      corpus: The tokenized corpus.
      trials: The results of each checkpoint.
      measures: The measures.
    """
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
        "agreement": {
            str(measure): _agreement(measure, number, trials) for measure in measures
        },
    }


def _seconds(trials: Sequence[Trial], number: int, share: float) -> dict[str, float]:
    """Returns the seconds that each stage takes for a checkpoint.

    The time of encoding the corpus is in proportion to the sample's tokens; the times of
    restoring, of encoding the queries and of searching are as measured. Each is the median
    over the checkpoints, because the first one includes compilation.

    Args:
      trials: The results of each checkpoint.
      number: The index of the sample in each trial.
      share: The sample's share of the corpus's tokens.
    """
    shared = {
        stage: float(np.median([trial.shared[stage] for trial in trials]))
        for stage in ("restore", "queries", "passages")
    }
    own = float(np.median([trial.own[number] for trial in trials]))
    return shared | {"passages": shared["passages"] * share, "search": own}


def _agreement(measure: Any, number: int, trials: Sequence[Trial]) -> Report:
    """Returns the agreement of a sample with the whole corpus on a measure.

    A measure of which lower is better is negated.
    """
    sign = -1 if lower_is_better(measure) else 1
    whole, part = (
        sign * np.stack([trial.per_query[index][str(measure)] for trial in trials])
        for index in (0, number)
    )
    return asdict(agree(whole, part))
