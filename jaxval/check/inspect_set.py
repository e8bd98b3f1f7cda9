"""One set: its texts, and what a sample of it is encoded to and how that is ranked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxval.check import findings
from jaxval.check.check_report import SetReport, Texts, Vectors
from jaxval.check.findings import Finding
from jaxval.check.probe import Part, Ranking, Sample, choose, rank
from jaxval.corpus.readers import read_texts, render
from jaxval.corpus.token_store import Recipe, TokenStore
from jaxval.corpus.tokenizer import Tokenizer
from jaxval.errors import NonFiniteError
from jaxval.evaluation.encode import Tower, matrix
from jaxval.evaluation.plan import EvalPlan, EvalSet, TowerParams
from jaxval.evaluation.prepare import Prepared
from jaxval.records import DatasetFiles, Params, Progress

_UNEQUAL = 1.01  # the longest vector over the shortest: else all similarities agree


def texts(
    prepared: Prepared, judged: EvalSet, corpus: TokenStore, files: DatasetFiles
) -> SetReport:
    """A set's texts."""
    plan, encoding = prepared.plan, prepared.encoding
    queries, passages = encoding.queries, encoding.passages
    cut = _longer(judged.queries, queries, encoding.tokenizer, files)
    counts = [len(rows) for rows in judged.candidates or ()]
    return SetReport(
        name=judged.name,
        candidates=sum(counts) / len(counts) if counts else None,
        queries=Texts(judged.queries, queries, plan.query_tower.shapes(judged.queries), cut),
        passages=Texts(corpus, passages, plan.passage_tower.shapes(corpus), corpus.full),
    )


def _longer(store: TokenStore, recipe: Recipe, made: Tokenizer, files: DatasetFiles) -> int:
    """How many queries are cut. Those that fill the limit are tokenized with room for more."""
    if not store.full:
        return 0
    filling = set(store.ids(store.rows[np.asarray(store.lengths) >= recipe.max_len]))
    rendered = [
        render(text, recipe.template, recipe.prefix)
        for text in read_texts(files.queries)
        if text.id in filling
    ]
    return sum(len(ids) > recipe.max_len for ids in made.encode(rendered, recipe.max_len + 1))


def cut(seen: SetReport) -> Iterator[Finding]:
    """What is doubtful about a set's texts."""
    for kind, each in {"query": seen.queries, "passage": seen.passages}.items():
        limit = each.recipe.max_len
        yield from findings.cut(kind, seen.name, each.cut, each.store.count, limit)


def encoded(
    seen: SetReport, plan: EvalPlan, judged: EvalSet, params: TowerParams, progress: Progress
) -> tuple[SetReport, list[Finding]]:
    """The set with the vectors of a sample and its ranking, and what is doubtful of these."""
    sample = choose(judged, seen.passages.store)
    try:
        queries = _vectors(plan.query_tower, params.query, sample.queries, progress)
        passages = _vectors(plan.passage_tower, params.passage, sample.passages, progress)
    except NonFiniteError as error:
        return seen, [Finding(f"{seen.name}: {error}", error=True)]
    found = [
        *findings.alike("queries", seen.name, queries),
        *findings.alike("passages", seen.name, passages),
    ]
    ranking = _rank(plan, sample, queries, passages, plan.similarity)
    if ranking is not None and not found:
        found += findings.by_chance(seen.name, ranking, sample.passages.count)
        found += _other_similarity(seen.name, plan, sample, queries, passages, ranking)
    vectors = _described(queries, passages)
    return replace(seen, vectors=vectors, ranking=ranking), found


def _vectors(tower: Tower, params: Params, part: Part, progress: Progress) -> np.ndarray:
    return matrix(
        tower.chunks(params, part, progress("encoding a sample", part.count)), part.count
    )


def _rank(
    plan: EvalPlan, sample: Sample, queries: np.ndarray, passages: np.ndarray, similarity: str
) -> Ranking | None:
    return rank(sample, queries, passages, similarity, plan.index_dtype)


def _other_similarity(
    name: str,
    plan: EvalPlan,
    sample: Sample,
    queries: np.ndarray,
    passages: np.ndarray,
    ranking: Ranking,
) -> list[Finding]:
    """Whether the one that was not chosen ranks better; of unit vectors both are the same."""
    shortest, longest = _lengths(passages)
    if longest <= _UNEQUAL * shortest:
        return []
    other = {"dot": "cosine", "cosine": "dot"}[plan.similarity]
    ranked = _rank(plan, sample, queries, passages, other)
    return findings.similarity(name, plan.similarity, ranking, ranked) if ranked else []


def _lengths(vectors: np.ndarray) -> tuple[float, float]:
    norms = np.linalg.norm(vectors, axis=1)
    return float(norms.min()), float(norms.max())


def _described(queries: np.ndarray, passages: np.ndarray) -> Vectors:
    both = [*_lengths(queries), *_lengths(passages)]
    return Vectors(
        queries=len(queries),
        passages=len(passages),
        dim=queries.shape[1],
        lengths=(min(both), max(both)),
        likeness=(findings.likeness(queries), findings.likeness(passages)),
    )
