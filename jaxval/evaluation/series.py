"""The identity of a series: a versioned record of the data and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxval.canonical import canonical, digest
from jaxval.config import Evaluation
from jaxval.corpus.datasets import QuerySet
from jaxval.corpus.runs import Candidates
from jaxval.evaluation.encoding import Encoding

VERSION = 1
"""The version of the record. Another version starts new series.

Raise it when jaxval computes other values from the same settings, or when a field of a record
gets another default.
"""


def series_settings(
    settings: Evaluation,
    encoding: Encoding,
    measures: Sequence[Any],
    queries: QuerySet,
    corpus: str,
    candidates: Candidates | None,
) -> dict[str, Any]:
    """Returns the settings that identify a series, as JSON can hold them.

    Values compare only within a series. A new setting belongs here if it changes values; it
    is left out at its default, so that existing series go on.

    Args:
      settings: How each checkpoint is evaluated.
      encoding: The encoder, and how texts become tokens.
      measures: The measures, as `metrics.measures.parse` returns them.
      queries: The queries and judgments of the set.
      corpus: The digest of the corpus.
      candidates: With re-ranking, the passages of each query.
    """
    record = {
        "version": VERSION,
        "dataset": queries.name,
        "corpus": corpus,
        "queries": queries.digest,
        **ranking_settings(settings, encoding),
        "depth": settings.search.depth,
        "measures": sorted(map(str, measures)),
    }
    if candidates is not None:
        record["candidates"] = digest({query: sorted(ids) for query, ids in candidates.items()})
    return record


def ranking_settings(settings: Evaluation, encoding: Encoding) -> dict[str, Any]:
    """Returns the settings that decide, with the texts, how a checkpoint ranks passages.

    They identify a sample that is drawn by a checkpoint's ranking, too: manifests hold them.
    """
    return {
        "tokenizer": encoding.tokenizer.digest,
        "passages": canonical(encoding.passages),
        "query texts": canonical(encoding.queries),
        "encoder": encoding.identity,
        "similarity": settings.search.similarity,
        "index_dtype": settings.search.index_dtype,
    }
