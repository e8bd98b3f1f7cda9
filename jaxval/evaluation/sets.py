"""A validation set made ready: tokenized, its qrels in rows, its series named."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxval.canonical import digest
from jaxval.config import Evaluation, Search
from jaxval.corpus import readers, token_store
from jaxval.corpus.datasets import QuerySet, none_judged
from jaxval.corpus.runs import Candidates, of_another_corpus, read_run
from jaxval.corpus.token_store import TokenStore
from jaxval.errors import UserError
from jaxval.evaluation.encoding import Encoding
from jaxval.evaluation.plan import EvalSet
from jaxval.evaluation.series import series_settings
from jaxval.metrics.ranks import Judgments
from jaxval.records import DatasetFiles, Progress, Text

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSet:
    """A validation set that is ready to be evaluated.

    Attributes:
      files: The files of the set.
      queries: The queries and judgments that were read from the files.
      corpus: The tokenized corpus.
      eval_set: The tokenized queries and their judgments as rows of the corpus.
      settings: The settings that identify the series, for the ledger.
    """

    files: DatasetFiles
    queries: QuerySet
    corpus: TokenStore
    eval_set: EvalSet
    settings: dict[str, Any]


def prepare_set(
    files: DatasetFiles,
    queries: QuerySet,
    settings: Evaluation,
    encoding: Encoding,
    measures: Sequence[Any],
    progress: Progress,
) -> PreparedSet:
    """Reads and tokenizes a set, and says what is left out of it.

    Args:
      files: the set's.
      queries: what was read of them already.
      settings, encoding, measures: of the run.
      progress: shows the tokenizing.

    Raises:
      DataError: the corpus cannot be used, or has none of the judged documents.
    """
    named = _candidates(settings.search, queries)
    origin = readers.digest(files.corpus)
    corpus = _tokenize_corpus(files, origin, named, settings, encoding, progress)
    stored = _tokenize_queries(files, queries, settings, encoding, progress)
    rows = corpus.find(sorted({doc for grades in queries.qrels.values() for doc in grades}))
    _report(queries, stored, corpus, rows, "in the corpus" if named is None else "candidates")
    if not rows:
        where = (
            files.corpus if named is None else f"{settings.search.rerank} and {files.corpus}"
        )
        raise none_judged(files, where)
    identity = series_settings(settings, encoding, measures, queries, origin, named)
    query_ids = tuple(text.id for text in queries.texts)
    eval_set = EvalSet(
        name=files.name,
        series=digest(identity),
        queries=stored,
        query_ids=query_ids,
        judgments=Judgments.from_qrels(queries.qrels, query_ids, rows),
        candidates=None if named is None else _candidate_rows(queries, named, corpus),
    )
    return PreparedSet(files, queries, corpus, eval_set, identity)


def _candidates(search: Search, queries: QuerySet) -> Candidates | None:
    """Of each query, the passages that are scored; None for all."""
    if search.rerank is None:
        return None
    run = read_run(search.rerank, search.depth, queries.qrels)
    without = len(queries.texts) - len(run.hits)
    if without:
        remark = "%s: of %d judged queries %d are not in %s and find nothing"
        _LOG.warning(remark, queries.name, len(queries.texts), without, search.rerank)
    return run.hits


def _among(
    texts: Iterable[Text], ids: Collection[str], flag: str, files: DatasetFiles
) -> Iterator[Text]:
    """Those of these ids; DataError if there is none."""
    found = 0
    for text in texts:
        if text.id in ids:
            found += 1
            yield text
    if not found:
        raise of_another_corpus(flag, ids, files.corpus)


def _candidate_rows(
    queries: QuerySet, named: Candidates, corpus: TokenStore
) -> tuple[np.ndarray, ...]:
    """The candidates of each query, as rows of the corpus."""
    ids = sorted({id_ for passages in named.values() for id_ in passages})
    rows = corpus.find(ids)
    if len(rows) < len(ids):
        remark = "%s: of %d candidates %d are not in the corpus and are left out"
        _LOG.warning(remark, queries.name, len(ids), len(ids) - len(rows))
    return tuple(
        np.array([rows[id_] for id_ in named.get(text.id, ()) if id_ in rows], np.int64)
        for text in queries.texts
    )


def _tokenize_corpus(
    files: DatasetFiles,
    origin: str,
    named: Candidates | None,
    settings: Evaluation,
    encoding: Encoding,
    progress: Progress,
) -> TokenStore:
    """The corpus, or of it the candidates alone."""
    texts = readers.read_texts(files.corpus)
    if named is not None:
        ids = frozenset(id_ for passages in named.values() for id_ in passages)
        texts = _among(texts, ids, f"`rerank={settings.search.rerank}`", files)
        origin = digest([origin, sorted(ids)])
    return token_store.open_or_build(
        _token_dir(settings),
        texts,
        origin,
        encoding.tokenizer,
        encoding.passages,
        places=lambda id_: readers.places(files.corpus, id_),
        bar=lambda: progress(f"{files.name}: tokenizing passages", None),
    )


def _token_dir(settings: Evaluation) -> Path:
    if settings.texts.token_dir is None:
        raise UserError("`token_dir` is not set: name a directory for the tokenized texts")
    return settings.texts.token_dir


def _tokenize_queries(
    files: DatasetFiles,
    queries: QuerySet,
    settings: Evaluation,
    encoding: Encoding,
    progress: Progress,
) -> TokenStore:
    return token_store.open_or_build(
        _token_dir(settings),
        queries.texts,
        queries.digest,
        encoding.tokenizer,
        encoding.queries,
        places=lambda id_: readers.places(files.queries, id_),
        bar=lambda: progress(f"{files.name}: tokenizing queries", None),
    )


def _report(
    queries: QuerySet,
    stored: TokenStore,
    corpus: TokenStore,
    rows: dict[str, int],
    where: str,
) -> None:
    """Says what the set holds, and everything about it that is left out or looks wrong."""
    judged = {doc for grades in queries.qrels.values() for doc in grades}
    _LOG.info(
        "%s: %d passages of %.0f tokens (%.1f%% padding, widths %s), %d queries of %.0f tokens",
        queries.name,
        corpus.count,
        corpus.tokens / corpus.count,
        100 * (1 - corpus.tokens / corpus.padded),
        " ".join(str(bucket.width) for bucket in corpus.buckets),
        stored.count,
        stored.tokens / stored.count,
    )
    irrelevant = sum(max(grades.values()) <= 0 for grades in queries.qrels.values())
    remarks = {
        "of %d judged queries %d have no relevant document, by their qrels": (
            len(queries.texts),
            irrelevant,
        ),
        f"of %d judged documents %d are not {where}; they count as never found": (
            len(judged),
            len(judged) - len(rows),
        ),
        "of %d queries %d reach `query_max_len` and may be cut": (stored.count, stored.full),
        "of %d passages %d reach `passage_max_len` and may be cut": (corpus.count, corpus.full),
        "beside %d judged queries, %d have no judgement and are left out": (
            len(queries.texts),
            queries.unjudged,
        ),
        "beside %d judged queries, %d of the qrels have no text and are left out": (
            len(queries.texts),
            queries.unknown_queries,
        ),
    }
    for remark, (whole, part) in remarks.items():
        if part:
            _LOG.warning("%s: " + remark, queries.name, whole, part)
