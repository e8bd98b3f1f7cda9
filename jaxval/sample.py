"""Writes a sampled corpus: the judged passages, and those that a strategy chooses.

python -m jaxval.sample --dataset=dev:FOLDER --strategy=run:depth=100 --run=PATH
--output_dir=SAMPLE, and then --dataset=dev:SAMPLE for jaxval.main
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from absl import flags

from jaxval import app, devices
from jaxval.corpus import beir, bm25, datasets, readers, samples, sampling
from jaxval.corpus.datasets import QuerySet, load_queries
from jaxval.corpus.runs import Run, read_run
from jaxval.corpus.sampling import Selection, Sieve, Strategy
from jaxval.errors import DataError, UserError
from jaxval.records import DatasetFiles, Progress, Text
from jaxval.trackers.console import progress

_LOG = logging.getLogger("jaxval.sample")  # not __main__, which app.run does not show

_DATASET = flags.DEFINE_string(
    "dataset",
    "",
    "Required. The validation set to sample, as NAME:FOLDER or"
    " NAME:corpus=PATH,queries=PATH,qrels=PATH, or both, as for jaxval.main.",
)
_STRATEGY = flags.DEFINE_string(
    "strategy",
    "",
    "Required. What is kept beside the judged passages: run:depth=N, the first N of each query"
    " in each --run; bm25:depth=N, the same by BM25 (needs jaxval[sample]); random:size=N, so"
    " many of the others; full, all. Several are joined by +.",
)
_RUN = flags.DEFINE_multi_string(
    "run",
    [],
    "A run file for run:depth=N, in the form of TREC or MS MARCO, plain or .gz. May be"
    " repeated; the passages of all are pooled.",
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Decides what random:size=N draws.", lower_bound=0, upper_bound=2**63 - 1
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    "",
    "Required. A new folder: corpus.jsonl, queries.jsonl, qrels/test.tsv, and manifest.json,"
    " which says how they were made.",
)

_TOPICS: app.Topics = {
    "What is sampled": (_DATASET,),
    "How": (_STRATEGY, _RUN, _SEED),
    "Output": (_OUTPUT_DIR,),
}


def sample(
    files: DatasetFiles,
    strategy: Strategy,
    runs: Sequence[Path],
    seed: int,
    output_dir: Path,
    progress: Progress,
) -> str:
    """Writes a sample of a validation set, unless it is there already.

    Args:
      files: the validation set.
      strategy: what is kept beside the judged passages.
      runs: files for its `run` part.
      seed: of its `random` part.
      output_dir: appears when the sample is whole.
      progress: shows each reading of the corpus.

    Returns:
      One line that says what was written.

    Raises:
      UserError: the strategy and the runs do not go together, or output_dir holds something
        else.
      DataError: a file cannot be used.
    """
    _check(strategy, runs)
    queries = load_queries(files)
    origin = samples.origin(files, strategy, runs, seed)
    if samples.holds(output_dir, origin):
        return f"{output_dir} holds this sample already: nothing to do"
    read = [read_run(path, strategy.run or 0, queries.qrels) for path in runs]
    _report(queries, read, strategy)

    def corpus() -> Iterator[Text]:
        with progress(f"{files.name}: reading passages", None) as bar:
            for passage in readers.read_texts(files.corpus):
                bar.update(1)
                yield passage

    (selection,) = sampling.select([strategy], queries, corpus, read, seed)

    def fill(folder: Path) -> dict[str, int]:
        return _fill(folder, files, queries, read, selection, corpus())

    counts = samples.publish(output_dir, origin, fill)
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
        raise DataError(
            f"--dataset={files.name}: none of the judged documents is in {files.corpus}:"
            f" do {files.qrels} and the corpus use the same ids?"
        )
    lost = f"of {len(judged)} judged documents %d are not in the corpus"
    _warn(files.name, {f"{lost}; they count as never found": len(missing.intersection(judged))})
    for run in runs:
        named = {passage for passages in run.hits.values() for passage in passages}
        if missing.issuperset(named):
            raise DataError(
                f"{run.path}: none of the passages it names ({min(named)!r}, …) is in"
                f" {files.corpus}: name a run of this corpus"
            )
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
    for flag in (_DATASET, _STRATEGY, _OUTPUT_DIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is not set (see --help)")
    devices.apply("cpu")  # bm25s has JAX open a device: a trainer's is left alone
    files, strategy = datasets.parse(_DATASET.value), sampling.parse(_STRATEGY.value)
    runs = [Path(path).expanduser() for path in _RUN.value]
    output_dir = Path(_OUTPUT_DIR.value).expanduser().resolve()
    print(sample(files, strategy, runs, _SEED.value, output_dir, progress))
    return 0


if __name__ == "__main__":
    app.run(main, _TOPICS, __doc__ or "")
