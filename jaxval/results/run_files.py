"""Run files: the hits of one checkpoint on one validation set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxval.atomic import replace_file
from jaxval.records import Hits

Ids = Callable[[np.ndarray], list[str]]


def write_run(
    path: Path, form: str, query_ids: Sequence[str], hits: Hits, ids: Ids, tag: str
) -> None:
    """Writes a run file.

    Args:
      path: The file, which is replaced atomically.
      form: `trec` (query Q0 document rank score tag) or `msmarco` (query, document and rank,
        separated by tabs).
      query_ids: Ids of the queries, one for each row of the hits.
      hits: The hits.
      ids: Maps rows of the corpus, [n], to document ids.
      tag: Name of the run in the TREC form.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(_lines(form, query_ids, hits, ids, tag))


def _lines(
    form: str, query_ids: Sequence[str], hits: Hits, ids: Ids, tag: str
) -> Iterator[str]:
    for query, rows, scores in zip(query_ids, hits.rows, hits.scores, strict=True):
        filled = rows >= 0
        documents = zip(ids(rows[filled]), scores[filled], strict=True)
        for rank, (document, score) in enumerate(documents, start=1):
            if form == "msmarco":
                yield f"{query}\t{document}\t{rank}\n"
            else:
                yield f"{query} Q0 {document} {rank} {score:.9g} {tag}\n"
