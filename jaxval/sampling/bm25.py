"""BM25's rankings, for who has no run to sample from. By bm25s, which is optional.

Lucene's BM25 with bm25s' own settings: k1 = 1.5, b = 0.75, words of two letters or more,
lower case, without English stop words, stemmed by Snowball's English stemmer (PyStemmer).
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
"""What words are cut by; another one ranks otherwise, so a sample's manifest names it."""

_PACKAGES = {"bm25s": "bm25s", "Stemmer": "PyStemmer"}


def check() -> None:
    """Raises UserError unless bm25s and PyStemmer are installed."""
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"bm25 needs the package {package}: pip install 'jaxval[sample]'")


def rank(passages: Iterable[Text], queries: Sequence[Text], depth: int) -> Candidates:
    """The `depth` passages that score highest for each query; ties stand in document order.

    Title and text count alike. A query has fewer where fewer share a word with it, and
    need not be there at all.

    The passages are read once and not kept, but in memory are their ids, and of each word 4
    bytes, of each different word of a passage some 20 more while the index is built. The
    import of bm25s has JAX open its device: see `devices.apply`.

    Raises:
      UserError: bm25s or PyStemmer is not installed.
      DataError: a text is token ids, or no passage has a word.
    """
    check()
    import bm25s
    import Stemmer

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    words = bm25s.tokenization.Tokenizer(stemmer=Stemmer.Stemmer("english"))
    ids, tokens = _tokenize(passages, words)
    # scipy builds it in 20 bytes a word, bm25s by itself in 36.
    index = bm25s.BM25(csc_backend="scipy")
    index.index((tokens, words.get_vocab_dict()), create_empty_token=False, show_progress=False)
    asked = words.streaming_tokenize(
        map(_words, queries), update_vocab=False, allow_empty=False
    )
    ranked = (
        _best(index.get_scores_from_ids(query), depth) if query else () for query in asked
    )
    return {
        query.id: tuple(ids[row] for row in rows)
        for query, rows in zip(queries, ranked, strict=True)
        if len(rows)
    }


def _tokenize(passages: Iterable[Text], words: Any) -> tuple[list[str], list[array[int]]]:
    """The id of each passage, and the numbers of its words."""
    ids: list[str] = []

    def texts() -> Iterator[str]:
        for passage in passages:
            ids.append(passage.id)
            yield _words(passage)

    numbers = words.streaming_tokenize(texts(), update_vocab=True, allow_empty=False)
    tokens = [array("i", of_one) for of_one in numbers]
    if not any(tokens):
        raise DataError(
            "bm25: no passage has a word of two letters: sample by another strategy"
        )
    return ids, tokens


def _words(text: Text) -> str:
    words = render(text, "{title} {text}", "")
    if isinstance(words, str):
        return words
    raise DataError(
        f"bm25 needs words, and text {text.id!r} is token ids: sample from a run of them,"
        " `strategy=run:depth=100` `run=PATH`"
    )


def _best(scores: np.ndarray, depth: int) -> np.ndarray:
    """The rows of the highest scores above 0, best first."""
    rows = np.flatnonzero(scores)
    if len(rows) > depth:
        least = np.partition(scores[rows], -depth)[-depth]
        rows = rows[scores[rows] >= least]
    return rows[np.argsort(-scores[rows], kind="stable")][:depth]
