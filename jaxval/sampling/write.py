"""Writes a sampled corpus: the judged passages, and those that a strategy selects."""

from __future__ import annotations

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
    """Writes a sample of a validation set, unless it is there already.

    Args:
      files: the validation set.
      strategy: what is kept beside the judged passages.
      runs: files for its `run` part.
      seed: of its `random` part.
      output_dir: appears when the sample is whole.
      progress: shows each reading of the corpus.
      ranker: ranks the corpus for its `dense` part.

    Returns:
      One line that says what was written.

    Raises:
      UserError: the strategy and the runs do not go together, or output_dir holds something
        else.
      DataError: a file cannot be used.
    """
    _check(strategy, runs)
    queries = load_queries(files)
    origin = publish.origin(files, strategy, runs, seed, ranker.origin if ranker else None)
    if manifest.holds(output_dir, origin):
        return f"{output_dir} holds this sample already: nothing to do"
    read = [read_run(path, strategy.run or 0, queries.qrels) for path in runs]
    _report(queries, read, strategy)

    def corpus() -> Iterator[Text]:
        bar = progress(f"{files.name}: reading passages", None)
        return readers.counted(readers.read_texts(files.corpus), bar)

    by_dense = ranker.rank(strategy.dense or 0) if ranker else None
    (selection,) = strategies.select([strategy], queries, corpus, read, seed, by_dense)

    def fill(folder: Path) -> dict[str, int]:
        return _fill(folder, files, queries, read, selection, corpus())

    counts = publish.publish(output_dir, origin, fill)
    return (
        f"wrote {output_dir}: {counts['passages']:,} of {counts['corpus']:,} passages,"
        f" {counts['judged']:,} of them judged, and {counts['queries']:,} judged queries"
    )


def _check(strategy: Strategy, runs: Sequence[Path]) -> None:
    """Raises UserError unless the strategy has what it needs, and nothing else is given."""
    if strategy.run and not runs:
        raise UserError(f"`strategy={strategy}` needs a run: add `run=PATH`")
    if runs and not strategy.run:
        raise UserError(f"`strategy={strategy}` takes no `run`: add run:depth=N, or drop it")
    if strategy.bm25:
        bm25.check()


def _report(queries: QuerySet, runs: Sequence[Run], strategy: Strategy) -> None:
    """Says what the files leave out."""
    judged = len(queries.texts)
    _warn(
        queries.name,
        {
            f"beside {judged} judged queries, %d have no judgement: nothing is kept for them": (
                queries.unjudged
            ),
            f"beside {judged} judged queries, %d of the qrels have no text and are left out": (
                queries.unknown_queries
            ),
        },
    )
    for run in runs:
        deepest = max(map(len, run.hits.values()))
        shallow = deepest if deepest < (strategy.run or 0) else 0
        _warn(
            run.path,
            {
                "%d of its queries are not judged and are left out": run.others,
                f"of {judged} judged queries %d are not in it": judged - len(run.hits),
                f"it ranks %d passages of a query at most, fewer than {strategy}": shallow,
            },
        )


def _fill(
    folder: Path,
    files: DatasetFiles,
    queries: QuerySet,
    runs: Sequence[Run],
    selection: Selection,
    corpus: Iterator[Text],
) -> dict[str, int]:
    """Writes the selected passages, all queries, and the judgements of those that have some."""
    judged = queries.judged
    sieve = Sieve(selection, judged, lambda id_: readers.find_lines(files.corpus, id_))
    texts = readers.read_texts(files.queries)
    beir.write(folder, sieve.passed(corpus), texts, queries.qrels)
    _check_found(files, judged, runs, sieve.missing)
    found = len(judged - sieve.missing)
    _report_size(files, selection.strategy, sieve.read - found)
    return {
        "corpus": sieve.read,
        "passages": sieve.kept,
        "judged": found,
        "queries": len(queries.texts),
        "judgements": sum(map(len, queries.qrels.values())),
    }


def _check_found(
    files: DatasetFiles, judged: Collection[str], runs: Sequence[Run], missing: set[str]
) -> None:
    """Says which of the named passages the corpus lacks; all of them is an error."""
    if missing.issuperset(judged):
        raise none_judged(files, files.corpus)
    lost = f"of {len(judged)} judged documents %d are not in the corpus"
    _warn(files.name, {f"{lost}; they count as never found": len(missing.intersection(judged))})
    for run in runs:
        named = {passage for passages in run.hits.values() for passage in passages}
        if missing.issuperset(named):
            raise of_another_corpus(run.path, named, files.corpus)
        _warn(
            run.path,
            {
                f"of {len(named)} passages %d are not in the corpus and are left out": len(
                    missing & named
                )
            },
        )


def _report_size(files: DatasetFiles, strategy: Strategy, others: int) -> None:
    """Says so where more passages were to be drawn than there are."""
    if (strategy.random or 0) > others:
        _LOG.warning(
            "%s: random:size=%d, and only %d passages are not judged: this is the whole corpus",
            files.name,
            strategy.random,
            others,
        )


def _warn(where: object, remarks: dict[str, int]) -> None:
    for remark, count in remarks.items():
        if count:
            _LOG.warning("%s: " + remark, where, count)
