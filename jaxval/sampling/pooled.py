"""Strategies that each pool some of the given runs, and the passages that they select."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxval.corpus import readers
from jaxval.corpus.datasets import QuerySet
from jaxval.corpus.runs import Candidates, Run, of_another_corpus, read_run
from jaxval.corpus.token_store import TokenStore
from jaxval.errors import UserError
from jaxval.records import DatasetFiles, Progress
from jaxval.sampling import bm25, strategies
from jaxval.sampling.strategies import Selection, Strategy

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PooledStrategy:
    """A strategy and the runs that its `run` part pools.

    Attributes:
      label: The strategy's text, with its parts in a fixed order.
      strategy: Which passages are kept.
      runs: Paths of the run files. Empty without a `run` part.
    """

    label: str
    strategy: Strategy
    runs: tuple[Path, ...] = ()


def parse_all(texts: Sequence[str], runs: Sequence[Path]) -> list[PooledStrategy]:
    """Parses the strategies to compare with the whole corpus, without duplicates and `full`.

    Args:
      texts: The strategies, as `parse` reads them.
      runs: The run files.

    Raises:
      UserError: A text cannot be parsed, a run is missing or unused, or only `full` is left.
    """
    for path in runs:
        if not path.is_file():
            raise UserError(f"`run={path}`: there is no such file")
    pools = list(dict.fromkeys(parse(text, runs) for text in texts))
    unused = set(runs).difference(*(pool.runs for pool in pools))
    if unused:
        raise UserError(f"`run={min(unused)}`: no `strategy` has a run part that pools it")
    samples = [pool for pool in pools if not pool.strategy.full]
    if not samples:
        raise UserError("`strategy=full` is what samples are compared with: name another")
    return samples


def parse(text: str, runs: Sequence[Path]) -> PooledStrategy:
    """Parses `STRATEGY`, or `STRATEGY@NAME,…`, which pools only the named runs.

    A run's name is its file's name up to the first dot.

    Args:
      text: The strategy, as `strategies.parse` reads it, and perhaps names of runs.
      runs: All run files.

    Raises:
      UserError: The text cannot be parsed, or a run that it needs is missing.
    """
    spec, at, names = text.partition("@")
    strategy = strategies.parse(spec)
    if at and not strategy.run:
        raise UserError(f"`strategy={text}`: @ is followed by runs, but it has no run part")
    if not strategy.run:
        if strategy.bm25:
            bm25.check()
        return PooledStrategy(str(strategy), strategy)
    if not runs:
        raise UserError(f"`strategy={text}` needs a run: add `run=PATH`")
    wanted = [name.strip() for name in names.split(",")] if at else []
    paths = [_named(text, name, runs) for name in wanted] or list(runs)
    label = str(strategy) + (f"@{','.join(wanted)}" if at else "")
    return PooledStrategy(label, strategy, tuple(paths))


def select(
    pools: Sequence[PooledStrategy],
    files: DatasetFiles,
    queries: QuerySet,
    corpus: TokenStore,
    seed: int,
    dense: Candidates | None,
    progress: Progress,
) -> list[Selection]:
    """Returns the passages of each strategy, in order.

    Strategies that pool the same runs share one reading of the corpus.

    Args:
      pools: The strategies.
      files: The validation set. Its corpus is read for `random` and `bm25` parts.
      queries: The set's judged queries.
      corpus: The tokenized corpus, in which the passages of the runs are looked up.
      seed: The seed of the `random` parts.
      dense: A checkpoint's ranking for the `dense` parts. None if there are none.
      progress: Shows each reading of the corpus.

    Raises:
      DataError: A run or the corpus cannot be used.
    """
    passages = functools.partial(readers.read_corpus, files, progress)
    runs = _read_runs(pools, queries, corpus)
    selections: dict[PooledStrategy, Selection] = {}
    for paths in dict.fromkeys(pool.runs for pool in pools):
        group = [pool for pool in pools if pool.runs == paths]
        wanted = [pool.strategy for pool in group]
        pooled = [runs[path] for path in paths]
        selected = strategies.select(wanted, queries, passages, pooled, seed, dense)
        selections |= zip(group, selected, strict=True)
    return [selections[pool] for pool in pools]


def _named(text: str, name: str, runs: Sequence[Path]) -> Path:
    paths = [path for path in runs if path.name.partition(".")[0] == name]
    if len(paths) != 1:
        names = ", ".join(path.name.partition(".")[0] for path in runs)
        problem = "no `run` is" if not paths else "several `run` are"
        raise UserError(f"`strategy={text}`: {problem} named {name!r} (there are {names})")
    return paths[0]


def _read_runs(
    pools: Sequence[PooledStrategy], queries: QuerySet, corpus: TokenStore
) -> dict[Path, Run]:
    """Reads each run once, as deep as the deepest strategy needs."""
    depth = max(pool.strategy.run or 0 for pool in pools)
    paths = dict.fromkeys(path for pool in pools for path in pool.runs)
    runs = {path: read_run(path, depth, queries.qrels) for path in paths}
    for run in runs.values():
        _check_run(run, corpus)
    return runs


def _check_run(run: Run, corpus: TokenStore) -> None:
    """Warns of passages that the corpus lacks.

    Raises:
      DataError: It lacks all of them.
    """
    named = sorted({passage for passages in run.hits.values() for passage in passages})
    missing = len(named) - len(corpus.find(named))
    if missing == len(named):
        raise of_another_corpus(run.path, named, "the corpus")
    if missing:
        remark = "%s: %d of %d passages are not in the corpus"
        _LOG.warning(remark, run.path, missing, len(named))
