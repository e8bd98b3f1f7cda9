import math
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxval.errors import DataError
from jaxval.records import Text
from jaxval.sampling import bm25

PASSAGES = {
    "d0": "red green",
    "d1": "red red blue",
    "d2": "green",
    "d3": "",
    "d4": "yellow and the",
}


def texts(passages):
    return [Text(id_, text) for id_, text in passages.items()]


def rank(queries, depth=10, passages=PASSAGES):
    return bm25.rank(texts(passages), texts(queries), depth)


def by_hand(query, passages=PASSAGES, k1=1.5, b=0.75):
    """Returns the passages that share a word, by Lucene's BM25, best first."""
    words = {id_: text.replace("and the", "").split() for id_, text in passages.items()}
    mean = sum(map(len, words.values())) / len(words)
    scores = {}
    for row, (id_, own) in enumerate(words.items()):
        score = 0.0
        for word in query.split():
            df = sum(word in other for other in words.values())
            tf = own.count(word)
            idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
            score += idf * tf / (k1 * (1 - b + b * len(own) / mean) + tf)
        scores[id_] = (-score, row)
    return tuple(id_ for id_ in sorted(scores, key=scores.get) if scores[id_][0] < 0)


@pytest.mark.parametrize("query", ["red", "red green", "green blue blue", "yellow"])
def test_the_order_is_that_of_lucenes_bm25(query):
    assert rank({"q": query}) == {"q": by_hand(query)}
    assert rank({"q": query}, depth=1) == {"q": by_hand(query)[:1]}


def test_passages_without_a_common_word_are_not_ranked():
    assert rank({"q": "yellow", "none": "purple", "stop": "and the", "empty": ""}) == {
        "q": ("d4",)
    }


def test_title_and_text_count_equally_and_case_is_ignored():
    passages = [Text("a", "x1", "Harvard"), Text("b", "HARVARD x1"), Text("c", "x1 x2")]
    assert bm25.rank(passages, [Text("q", "harvard")], 9) == {"q": ("a", "b")}


@given(
    scores=arrays(np.float32, st.integers(0, 12), elements=st.sampled_from([0, 0.5, 1, 2])),
    depth=st.integers(1, 14),
)
def test_ties_are_in_document_order(scores, depth):
    expected = [row for row in np.argsort(-scores, kind="stable") if scores[row] > 0]
    assert bm25._best(scores, depth).tolist() == expected[:depth]


def test_passages_are_read_once_and_lazily():
    read = []

    def passages():
        for row in range(10):
            read.append(row)
            yield Text(f"d{row}", "some words" if row < 5 else (1, 2))

    with pytest.raises(
        DataError, match="text 'd5' is token ids: sample from a run instead, with `strategy"
    ):
        bm25.rank(passages(), [Text("q", "words")], 1)
    assert read == list(range(6))
    assert bm25.rank(islice(passages(), 5), [Text("q", "words")], 1) == {"q": ("d0",)}


def test_a_query_of_token_ids_is_refused():
    with pytest.raises(DataError, match="bm25 needs words, and text 'q' is token ids"):
        bm25.rank(texts(PASSAGES), [Text("q", (3, 4))], 1)


def test_a_corpus_without_words_is_refused():
    with pytest.raises(DataError, match="no passage has a word of two letters"):
        rank({"q": "red"}, passages={"a": "", "b": "x and y"})


def test_words_are_stemmed():
    passages = {"a": "a flying bird", "b": "birds flew", "c": "stones"}
    assert rank({"q": "fly", "r": "Birds", "s": "stone"}, passages=passages) == {
        "q": ("a",),
        "r": ("a", "b"),
        "s": ("c",),
    }


@pytest.mark.parametrize(("module", "package"), [("bm25s", "bm25s"), ("Stemmer", "PyStemmer")])
def test_a_missing_package_is_named(module, package):
    script = f"""
import sys
sys.modules["{module}"] = None
from jaxval.sampling import bm25
from jaxval.errors import UserError
try:
    bm25.rank([], [], 1)
except UserError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    message = f"bm25 needs the package {package}: pip install 'jaxval[sample]'\n"
    assert ran.stdout == message, ran.stderr
