"""Writes a sampled corpus: the judged passages, and those that a strategy chooses.

python -m jaxval.sample --dataset=dev:FOLDER --strategy=run:depth=100 --run=PATH
--output_dir=SAMPLE, and then --dataset=dev:SAMPLE for jaxval.main. The flags of jaxval.main's
that say how a checkpoint is validated are heard where dense:depth=N takes one's ranking.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from jaxval.cli import devices, flags, frame
from jaxval.config import Config
from jaxval.corpus import beir, readers
from jaxval.corpus.datasets import QuerySet, load_queries, none_judged
from jaxval.corpus.runs import Candidates, Run, of_another_corpus, read_run
from jaxval.errors import UserError
from jaxval.records import DatasetFiles, Progress, Text
from jaxval.results.console import progress
from jaxval.sampling import bm25, publish, strategies
from jaxval.sampling.strategies import Selection, Sieve, Strategy

_LOG = logging.getLogger("jaxval.sample")  # not __main__, which app.run does not show

_STRATEGY = absl_flags.DEFINE_string(
    "strategy",
    "",
    "Required. What is kept beside the judged passages: run:depth=N, the first N of each query"
    " in each --run; bm25:depth=N, the same by BM25 (needs jaxval[sample]); dense:depth=N, the"
    " same by a checkpoint (--dense_step), which is validated once for it; random:size=N, so"
    " many of the others; full, all. Several are joined by +.",
)
_RUN = absl_flags.DEFINE_multi_string(
    "run",
    [],
    "A run file for run:depth=N, in the form of TREC or MS MARCO, plain or .gz. May be"
    " repeated; the passages of all are pooled.",
)
_SEED = absl_flags.DEFINE_integer(
    "seed", 0, "Decides what random:size=N draws.", lower_bound=0, upper_bound=2**63 - 1
)
_DENSE_STEP = absl_flags.DEFINE_integer(
    "dense_step", None, "Whose ranking dense:depth=N takes: a step of --checkpoint_dir."
)

_TOPICS: frame.Topics = {
    "What is sampled": (flags.SHARED["dataset"],),
    "How": (_STRATEGY, _RUN, _SEED),
    "Output, a new folder with corpus, queries, qrels and manifest.json": (
        flags.SHARED["output_dir"],
    ),
    "For dense:depth=N, which checkpoint ranks": (flags.SHARED["checkpoint_dir"], _DENSE_STEP),
    "For dense:depth=N, how": (flags.SHARED["similarity"], flags.SHARED["index_dtype"]),
    **{title: flags.TOPICS[title] for title in ("The encoder", "Texts", "Devices")},
}


@dataclass(frozen=True)
class Dense:
    """The checkpoint whose ranking is sampled from.

    Attributes:
      origin: goes into the manifest.
      rank: depth -> its ranking of the whole corpus; validates it once.
    """

    origin: Mapping[str, Any]
    rank: Callable[[int], Candidates]


def sample(
    files: DatasetFiles,
    strategy: Strategy,
    runs: Sequence[Path],
    seed: int,
    output_dir: Path,
    progress: Progress,
    dense: Dense | None = None,
) -> str:
    """Writes a sample of a validation set, unless it is there already.

    Args:
      files: the validation set.
      strategy: what is kept beside the judged passages.
      runs: files for its `run` part.
      seed: of its `random` part.
      output_dir: appears when the sample is whole.
      progress: shows each reading of the corpus.
      dense: for its `dense` part.

    Returns:
      One line that says what was written.

    Raises:
      UserError: the strategy and the runs do not go together, or output_dir holds something
        else.
      DataError: a file cannot be used.
    """
    _check(strategy, runs)
    queries = load_queries(files)
    origin = publish.origin(files, strategy, runs, seed, dense.origin if dense else None)
    if publish.holds(output_dir, origin):
        return f"{output_dir} holds this sample already: nothing to do"
    read = [read_run(path, strategy.run or 0, queries.qrels) for path in runs]
    _report(queries, read, strategy)

    def corpus() -> Iterator[Text]:
        bar = progress(f"{files.name}: reading passages", None)
        return readers.counted(readers.read_texts(files.corpus), bar)

    by_dense = dense.rank(strategy.dense or 0) if dense else None
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
        raise UserError(f"--strategy={strategy} needs a run: add --run=PATH")
    if runs and not strategy.run:
        raise UserError(f"--strategy={strategy} takes no --run: add run:depth=N, or drop it")
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
    sieve = Sieve(selection, judged, lambda id_: readers.places(files.corpus, id_))
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


def main() -> int:
    """Flags -> a sample."""
    if not _STRATEGY.value:
        raise UserError("--strategy is not set (see --help)")
    files, output_dir = flags.dataset(), flags.output_dir().resolve()
    strategy = strategies.parse(_STRATEGY.value)
    strategies.check_step([strategy], _DENSE_STEP.value)
    # Also without a dense part: bm25s has JAX open a device, and a trainer's is left alone.
    devices.apply(flags.devices() if strategy.dense else "cpu")
    dense = _dense(flags.config(), output_dir) if strategy.dense else None
    runs = [Path(path).expanduser() for path in _RUN.value]
    print(sample(files, strategy, runs, _SEED.value, output_dir, progress, dense))
    return 0


def _dense(config: Config, output_dir: Path) -> Dense:
    """The checkpoint that --dense_step names."""
    from jaxval.evaluation import prepare
    from jaxval.evaluation.encoding import ranking_settings, read_encoding
    from jaxval.sampling import dense  # these import JAX

    if config.evaluation.search.rerank:
        raise UserError("--rerank ranks no corpus: leave it out, dense:depth=N needs all of it")
    checkpoint = dense.pick(config.watching.checkpoint_dir, _DENSE_STEP.value or 0)
    settings = ranking_settings(config.evaluation, read_encoding(config.evaluation))

    def rank(depth: int) -> Candidates:
        with _token_dir(output_dir) as tokens:
            texts = replace(config.evaluation.texts, token_dir=tokens)
            here = replace(config.evaluation, texts=texts)
            prepared = prepare.prepare(here, _open_devices, progress)
            return dense.rank(checkpoint, prepared.plan, depth, progress)

    identity = {"checkpoint": checkpoint.name, "commit_ns": checkpoint.commit_ns}
    return Dense({**identity, **settings}, rank)


def _open_devices() -> Any:
    return devices.open_devices(flags.devices())


@contextlib.contextmanager
def _token_dir(output_dir: Path) -> Iterator[Path]:
    """--token_dir, or a folder that is gone afterwards; what a kill leaves is swept up."""
    if flags.SHARED["token_dir"].value:
        yield Path(flags.SHARED["token_dir"].value)
        return
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(
        prefix=f".{output_dir.name}.", suffix=".partial", dir=output_dir.parent
    )
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    frame.run(main, _TOPICS, __doc__ or "")
