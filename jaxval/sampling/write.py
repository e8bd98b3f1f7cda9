"""Writes a sampled corpus: the judged passages, and those that a strategy selects."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxval.corpus import beir, manifest, readers
from jaxval.corpus.datasets import QuerySet, load_queries, none_judged
from jaxval.corpus.runs import Run, of_another_corpus, read_run
from jaxval.errors import UserError
from jaxval.records import DatasetFiles, Progress, Text
from jaxval.sampling import bm25, publish, strategies
from jaxval.sampling.strategies import Selection, Sieve, Strategy

if TYPE_CHECKING:
    from jaxval.sampling.dense import Ranker  # it imports JAX

_LOG = logging.getLogger(__name__)


def write_sample(
    files: DatasetFiles,
    strategy: Strategy,
    runs: Sequence[Path],
    seed: int,
    output_dir: Path,
    progress: Progress,
    ranker: Ranker | None = None,
) -> str:
    """Writes a sample of a validation set, unless `output_dir` holds it already.

    Args:
      files: The validation set.
      strategy: Which passages are kept in addition to the judged ones.
      runs: Run files for the strategy's `run` part.
      seed: The seed of the strategy's `random` part.
      output_dir: The sample's folder, which appears when the sample is complete.
      progress: Shows each reading of the corpus.
      ranker: Ranks the corpus for the strategy's `dense` part.

    Returns:
      One line about what was written.

    Raises:
      UserError: The strategy and the runs do not match, or `output_dir` holds something
        else.
      DataError: A file cannot be used.
    """
    _check(strategy, runs)
    queries = ranker.queries if ranker else load_queries(files)
    origin = publish.origin(files, strategy, runs, seed, ranker.origin if ranker else None)
    if manifest.holds(output_dir, origin):
        return f"{output_dir} holds this sample already: nothing to do"
    rankings = [read_run(path, strategy.run or 0, queries.qrels) for path in runs]
    _warn_of_queries(queries)
    for ranking in rankings:
        _warn_of_run(ranking, len(queries.texts), strategy)
    corpus = functools.partial(readers.read_corpus, files, progress)
    by_dense = ranker.rank(strategy.dense or 0) if ranker else None
    (selection,) = strategies.select([strategy], queries, corpus, rankings, seed, by_dense)

    def fill(folder: Path) -> dict[str, int]:
        return _fill(folder, files, queries, rankings, selection, corpus())

    counts = publish.publish(output_dir, origin, fill)
    return (
        f"wrote {output_dir}: {counts['passages']:,} of {counts['corpus']:,} passages,"
        f" {counts['judged']:,} of them judged, and {counts['queries']:,} judged queries"
    )


def _check(strategy: Strategy, runs: Sequence[Path]) -> None:
    """Raises UserError unless the runs match the strategy and its packages are installed."""
    if strategy.run and not runs:
        raise UserError(f"`strategy={strategy}` needs a run: add `run=PATH`")
    if runs and not strategy.run:
        raise UserError(
            f"`strategy={strategy}` takes no `run`: add run:depth=N, or remove `run`"
        )
    if strategy.bm25:
        bm25.check()


def _warn_of_queries(queries: QuerySet) -> None:
    """Warns of queries that do not count."""
    total = len(queries.texts) + queries.unjudged
    if queries.unjudged:
        remark = "%s: %d of %d queries have no judgment: no passages are selected for them"
        _LOG.warning(remark, queries.name, queries.unjudged, total)
    if queries.unknown_queries:
        remark = "%s: %d queries of the qrels have no text and are left out"
        _LOG.warning(remark, queries.name, queries.unknown_queries)


def _warn_of_run(run: Run, count: int, strategy: Strategy) -> None:
    """Warns of queries that a run lacks or has in excess, and of too short rankings.

    Args:
      run: The run.
      count: Number of judged queries.
      strategy: The strategy that pools the run.
    """
    if run.others:
        remark = "%s: %d of its queries are not judged and are left out"
        _LOG.warning(remark, run.path, run.others)
    if missing := count - len(run.hits):
        _LOG.warning("%s: %d of %d judged queries are not in it", run.path, missing, count)
    depth = max(map(len, run.hits.values()))
    if depth < (strategy.run or 0):
        remark = "%s: it ranks at most %d passages per query, fewer than %s selects"
        _LOG.warning(remark, run.path, depth, strategy)


def _fill(
    folder: Path,
    files: DatasetFiles,
    queries: QuerySet,
    runs: Sequence[Run],
    selection: Selection,
    corpus: Iterator[Text],
) -> dict[str, int]:
    """Writes the selected passages, all queries, and the judgments; returns the counts."""
    judged = queries.judged
    sieve = Sieve(selection, judged, lambda id_: readers.find_lines(files.corpus, id_))
    texts = readers.read_texts(files.queries)
    beir.write(folder, sieve.passed(corpus), texts, queries.qrels)
    _check_missing(files, judged, runs, sieve.missing)
    kept = len(judged - sieve.missing)
    unjudged, wanted = sieve.read - kept, selection.strategy.random or 0
    if wanted > unjudged:
        remark = "%s: random:size=%d exceeds the %d unjudged passages: all are in the sample"
        _LOG.warning(remark, files.name, wanted, unjudged)
    return {
        "corpus": sieve.read,
        "passages": sieve.kept,
        "judged": kept,
        "queries": len(queries.texts),
        "judgements": sum(map(len, queries.qrels.values())),
    }


def _check_missing(
    files: DatasetFiles, judged: Collection[str], runs: Sequence[Run], missing: set[str]
) -> None:
    """Warns of passages that the corpus lacks.

    Raises:
      DataError: It lacks all judged passages, or all passages of a run.
    """
    if missing.issuperset(judged):
        raise none_judged(files, files.corpus)
    if lost := len(missing.intersection(judged)):
        remark = "%s: %d of %d judged documents are not in the corpus and count as never found"
        _LOG.warning(remark, files.name, lost, len(judged))
    for run in runs:
        named = {passage for passages in run.hits.values() for passage in passages}
        if missing.issuperset(named):
            raise of_another_corpus(run.path, named, files.corpus)
        if lost := len(missing & named):
            remark = "%s: %d of %d passages are not in the corpus and are left out"
            _LOG.warning(remark, run.path, lost, len(named))
