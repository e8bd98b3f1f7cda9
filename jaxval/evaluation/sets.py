"""Prepares a validation set: tokenizes it, and builds its judgments and its series."""

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
    """Tokenizes a set, and logs what is left out of it.

    Args:
      files: The files of the set.
      queries: The queries and judgments that were read from the files.
      settings: How each checkpoint is evaluated.
      encoding: How texts become tokens.
      measures: The measures, as `metrics.measures.parse` returns them.
      progress: Shows the tokenization.

    Raises:
      DataError: The corpus cannot be used, or has none of the judged documents.
    """
    candidates = _read_candidates(settings.search, queries)
    corpus_digest = readers.digest(files.corpus)
    corpus = _tokenize_corpus(files, corpus_digest, candidates, settings, encoding, progress)
    tokenized = _tokenize_queries(files, queries, settings, encoding, progress)
    rows = corpus.find(sorted(queries.judged))
    _log_contents(queries, tokenized, corpus)
    _warn_of_losses(queries, tokenized, corpus, rows, reranked=candidates is not None)
    if not rows:
        rerank = settings.search.rerank
        raise none_judged(files, f"{rerank} and {files.corpus}" if rerank else files.corpus)
    identity = series_settings(settings, encoding, measures, queries, corpus_digest, candidates)
    query_ids = tuple(text.id for text in queries.texts)
    eval_set = EvalSet(
        name=files.name,
        series=digest(identity),
        queries=tokenized,
        query_ids=query_ids,
        judgments=Judgments.from_qrels(queries.qrels, query_ids, rows),
        candidates=None if candidates is None else _candidate_rows(queries, candidates, corpus),
    )
    return PreparedSet(files, queries, corpus, eval_set, identity)


def _read_candidates(search: Search, queries: QuerySet) -> Candidates | None:
    """Reads the passages to score for each query; None searches the whole corpus."""
    if search.rerank is None:
        return None
    run = read_run(search.rerank, search.depth, queries.qrels)
    count, missing = len(queries.texts), len(queries.texts) - len(run.hits)
    if missing:
        _LOG.warning(
            "%s: %d of %d judged queries are not in %s and get no results",
            *(queries.name, missing, count, search.rerank),
        )
    return run.hits


def _only(
    texts: Iterable[Text], ids: Collection[str], source: str, files: DatasetFiles
) -> Iterator[Text]:
    """Yields the texts of these ids.

    Raises:
      DataError: There is none.
    """
    count = 0
    for text in texts:
        if text.id in ids:
            count += 1
            yield text
    if not count:
        raise of_another_corpus(source, ids, files.corpus)


def _candidate_rows(
    queries: QuerySet, candidates: Candidates, corpus: TokenStore
) -> tuple[np.ndarray, ...]:
    """Returns the rows of each query's candidates, [n] int64 each."""
    ids = sorted({id_ for passages in candidates.values() for id_ in passages})
    rows = corpus.find(ids)
    if len(rows) < len(ids):
        _LOG.warning(
            "%s: %d of %d candidates are not in the corpus and are left out",
            *(queries.name, len(ids) - len(rows), len(ids)),
        )
    return tuple(
        np.array([rows[id_] for id_ in candidates.get(text.id, ()) if id_ in rows], np.int64)
        for text in queries.texts
    )


def _tokenize_corpus(
    files: DatasetFiles,
    corpus_digest: str,
    candidates: Candidates | None,
    settings: Evaluation,
    encoding: Encoding,
    progress: Progress,
) -> TokenStore:
    """Tokenizes the corpus, or only its candidates."""
    texts, origin = readers.read_texts(files.corpus), corpus_digest
    if candidates is not None:
        ids = frozenset(id_ for passages in candidates.values() for id_ in passages)
        texts = _only(texts, ids, f"`rerank={settings.search.rerank}`", files)
        origin = digest([corpus_digest, sorted(ids)])
    return token_store.open_or_build(
        _token_dir(settings),
        texts,
        origin,
        encoding.tokenizer,
        encoding.passages,
        find_lines=lambda id_: readers.find_lines(files.corpus, id_),
        bar=lambda: progress(f"{files.name}: tokenizing passages", None),
    )


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
        find_lines=lambda id_: readers.find_lines(files.queries, id_),
        bar=lambda: progress(f"{files.name}: tokenizing queries", None),
    )


def _token_dir(settings: Evaluation) -> Path:
    if settings.texts.token_dir is None:
        raise UserError("`token_dir` is not set: name a directory for the tokenized texts")
    return settings.texts.token_dir


def _log_contents(queries: QuerySet, tokenized: TokenStore, corpus: TokenStore) -> None:
    _LOG.info(
        "%s: %d passages of %.0f tokens (%.1f%% padding, widths %s), %d queries of %.0f tokens",
        queries.name,
        corpus.count,
        corpus.tokens / corpus.count,
        100 * (1 - corpus.tokens / corpus.padded),
        " ".join(str(bucket.width) for bucket in corpus.buckets),
        tokenized.count,
        tokenized.tokens / tokenized.count,
    )


def _warn_of_losses(
    queries: QuerySet,
    tokenized: TokenStore,
    corpus: TokenStore,
    rows: Collection[str],
    *,
    reranked: bool,
) -> None:
    """Logs each kind of text or judgment that is left out, cut or not found.

    Args:
      queries: The queries and judgments of the set.
      tokenized: The tokenized queries.
      corpus: The tokenized passages.
      rows: The ids of the judged documents that the corpus has.
      reranked: Whether the corpus consists of candidates only.
    """
    judged, count = len(queries.judged), len(queries.texts)
    irrelevant = sum(max(grades.values()) <= 0 for grades in queries.qrels.values())
    where = "candidates" if reranked else "in the corpus"
    losses = {
        f"%d of {count} judged queries have no relevant document in the qrels": irrelevant,
        f"%d of {judged} judged documents are not {where}; they count as never found": (
            judged - len(rows)
        ),
        f"%d of {tokenized.count} queries reach `query_max_len` and may be cut": tokenized.full,
        f"%d of {corpus.count} passages reach `passage_max_len` and may be cut": corpus.full,
        f"%d queries have no judgment and are left out; {count} are judged": queries.unjudged,
        f"%d queries of the qrels have no text and are left out; {count} are judged": (
            queries.unknown_queries
        ),
    }
    for loss, number in losses.items():
        if number:
            _LOG.warning("%s: " + loss, queries.name, number)
