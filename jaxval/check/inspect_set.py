"""Inspects one set: its texts, and the vectors and the ranking of a sample of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxval.check import findings
from jaxval.check.check_report import SetReport, TextStats, VectorStats
from jaxval.check.findings import Finding
from jaxval.check.probe import Ranking, Sample, StorePart, choose_sample, rank_sample
from jaxval.corpus.datasets import QuerySet
from jaxval.corpus.readers import render
from jaxval.corpus.token_store import Recipe, TokenStore
from jaxval.corpus.tokenizer import Tokenizer
from jaxval.errors import NonFiniteError
from jaxval.evaluation.encode import Tower, matrix
from jaxval.evaluation.encoding import Encoding
from jaxval.evaluation.plan import EvalPlan, EvalSet, TowerParams
from jaxval.records import Params, Progress

_EQUAL_NORMS = 1.01  # longest to shortest vector; below that, both similarities agree


def inspect_texts(
    plan: EvalPlan, encoding: Encoding, eval_set: EvalSet, corpus: TokenStore, queries: QuerySet
) -> SetReport:
    """Describes a set's texts.

    Args:
      plan: The towers.
      encoding: The tokenizer, and how texts are rendered.
      eval_set: The set.
      corpus: Its passages.
      queries: Its queries as text.
    """
    truncated = _count_truncated(
        eval_set.queries, queries, encoding.queries, encoding.tokenizer
    )
    counts = [len(rows) for rows in eval_set.candidates or ()]
    return SetReport(
        name=eval_set.name,
        queries=TextStats(
            eval_set.queries,
            encoding.queries,
            plan.query_tower.shapes(eval_set.queries),
            truncated,
        ),
        passages=TextStats(
            corpus, encoding.passages, plan.passage_tower.shapes(corpus), corpus.full
        ),
        candidates=sum(counts) / len(counts) if counts else None,
    )


def _count_truncated(
    store: TokenStore, queries: QuerySet, recipe: Recipe, tokenizer: Tokenizer
) -> int:
    """Returns how many queries are truncated.

    Queries that reach the limit are tokenized again, with room for one token more.
    """
    if not store.full:
        return 0
    full = set(store.ids(store.rows[np.asarray(store.lengths) >= recipe.max_len]))
    texts = [
        render(text, recipe.template, recipe.prefix)
        for text in queries.texts
        if text.id in full
    ]
    return sum(len(ids) > recipe.max_len for ids in tokenizer.encode(texts, recipe.max_len + 1))


def truncation_findings(report: SetReport) -> list[Finding]:
    """Returns what looks wrong about the lengths of a set's texts."""
    return [
        finding
        for kind, stats in {"query": report.queries, "passage": report.passages}.items()
        for finding in findings.truncated(
            kind, report.name, stats.truncated, stats.store.count, stats.recipe.max_len
        )
    ]


def inspect_vectors(
    report: SetReport,
    plan: EvalPlan,
    eval_set: EvalSet,
    params: TowerParams,
    progress: Progress,
) -> tuple[SetReport, list[Finding]]:
    """Encodes a sample of a set and ranks it.

    Args:
      report: What is known of the set.
      plan: The towers, and how to search.
      eval_set: The set.
      params: Parameters on the devices.
      progress: Shows the encoding.

    Returns:
      The report with vectors and ranking, and what looks wrong about them.
    """
    sample = choose_sample(eval_set, report.passages.store)
    try:
        queries = _encode(plan.query_tower, params.query, sample.queries, progress)
        passages = _encode(plan.passage_tower, params.passage, sample.passages, progress)
    except NonFiniteError as error:
        return report, [Finding(f"{report.name}: {error}", error=True)]
    problems = [
        *findings.identical_vectors("queries", report.name, queries),
        *findings.identical_vectors("passages", report.name, passages),
    ]
    ranking = _rank(plan, sample, queries, passages, plan.similarity)
    if ranking is not None and not problems:
        problems += findings.random_ranking(report.name, ranking, sample.passages.count)
        problems += _compare_similarities(report.name, plan, sample, queries, passages, ranking)
    return replace(report, vectors=_describe(queries, passages), ranking=ranking), problems


def _encode(tower: Tower, params: Params, part: StorePart, progress: Progress) -> np.ndarray:
    bar = progress("encoding a sample", part.count)
    return matrix(tower.chunks(params, part, bar), part.count)


def _rank(
    plan: EvalPlan, sample: Sample, queries: np.ndarray, passages: np.ndarray, similarity: str
) -> Ranking | None:
    return rank_sample(sample, queries, passages, similarity, plan.index_dtype)


def _compare_similarities(
    name: str,
    plan: EvalPlan,
    sample: Sample,
    queries: np.ndarray,
    passages: np.ndarray,
    ranking: Ranking,
) -> list[Finding]:
    """Reports whether the other similarity ranks better; on unit vectors both are the same."""
    shortest, longest = _norms(passages)
    if longest <= _EQUAL_NORMS * shortest:
        return []
    other = {"dot": "cosine", "cosine": "dot"}[plan.similarity]
    by_other = _rank(plan, sample, queries, passages, other)
    if by_other is None:
        return []
    return findings.better_similarity(name, plan.similarity, ranking, by_other)


def _norms(vectors: np.ndarray) -> tuple[float, float]:
    """Returns the norms of the shortest and of the longest vector."""
    norms = np.linalg.norm(vectors, axis=1)
    return float(norms.min()), float(norms.max())


def _describe(queries: np.ndarray, passages: np.ndarray) -> VectorStats:
    norms = [*_norms(queries), *_norms(passages)]
    return VectorStats(
        queries=len(queries),
        passages=len(passages),
        dim=queries.shape[1],
        norms=(min(norms), max(norms)),
        query_cosine=findings.mean_cosine(queries),
        passage_cosine=findings.mean_cosine(passages),
    )
