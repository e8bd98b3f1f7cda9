"""Rankings by BM25, to sample from without a run. Needs the optional package bm25s.

Lucene's BM25 with the defaults of bm25s: k1 = 1.5 and b = 0.75. Words have at least two
letters, are lower case, exclude English stop words, and are stemmed by Snowball's English
stemmer (PyStemmer).
"""

from __future__ import annotations

import importlib.util
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxval.corpus.readers import render
from jaxval.corpus.runs import Candidates
from jaxval.errors import DataError, UserError
from jaxval.records import Text

STEMMER = "snowball english"
"""The stemmer, which a sample's manifest names because another would rank differently."""

_PACKAGES = {"bm25s": "bm25s", "Stemmer": "PyStemmer"}


def check() -> None:
    """Raises UserError unless bm25s and PyStemmer are installed."""
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"bm25 needs the package {package}: pip install 'jaxval[sample]'")


def rank(passages: Iterable[Text], queries: Sequence[Text], depth: int) -> Candidates:
    """Returns the `depth` highest scored passages of each query; ties are in document order.

    Title and text count equally. The passages are read once and not kept. Memory holds their
    ids, 4 bytes for each word, and while the index is built about 20 more bytes for each
    distinct word of a passage. Importing bm25s makes JAX open its device.

    Args:
      passages: The corpus.
      queries: The queries.
      depth: Number of passages of each query. A query has fewer if fewer passages share a
        word with it, and is left out if there is none.

    Raises:
      UserError: Bm25s or PyStemmer is not installed.
      DataError: A text is token ids, or no passage has a word.
    """
    check()
    import bm25s
    import Stemmer

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    words = bm25s.tokenization.Tokenizer(stemmer=Stemmer.Stemmer("english"))
    ids, tokens = _tokenize(passages, words)
    # scipy needs 20 bytes per word to build it, bm25s' own code 36.
    index = bm25s.BM25(csc_backend="scipy")
    index.index((tokens, words.get_vocab_dict()), create_empty_token=False, show_progress=False)
    query_words = words.streaming_tokenize(
        map(_words, queries), update_vocab=False, allow_empty=False
    )
    ranked_rows = (
        _best(index.get_scores_from_ids(numbers), depth) if numbers else ()
        for numbers in query_words
    )
    return {
        query.id: tuple(ids[row] for row in rows)
        for query, rows in zip(queries, ranked_rows, strict=True)
        if len(rows)
    }


def _tokenize(passages: Iterable[Text], words: Any) -> tuple[list[str], list[array[int]]]:
    """Returns the id of each passage, and the numbers of its words."""
    ids: list[str] = []

    def texts() -> Iterator[str]:
        for passage in passages:
            ids.append(passage.id)
            yield _words(passage)

    numbers = words.streaming_tokenize(texts(), update_vocab=True, allow_empty=False)
    tokens = [array("i", passage_numbers) for passage_numbers in numbers]
    if not any(tokens):
        raise DataError("bm25: no passage has a word of two letters: use another strategy")
    return ids, tokens


def _words(text: Text) -> str:
    words = render(text, "{title} {text}", "")
    if isinstance(words, str):
        return words
    raise DataError(
        f"bm25 needs words, and text {text.id!r} is token ids: sample from a run instead, with"
        " `strategy=run:depth=100` `run=PATH`"
    )


def _best(scores: np.ndarray, depth: int) -> np.ndarray:
    """Returns the rows of the highest scores above 0, [at most depth] int64, best first."""
    rows = np.flatnonzero(scores)
    if len(rows) > depth:
        lowest = np.partition(scores[rows], -depth)[-depth]
        rows = rows[scores[rows] >= lowest]
    return rows[np.argsort(-scores[rows], kind="stable")][:depth]
