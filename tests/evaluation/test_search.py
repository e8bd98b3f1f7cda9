"""Tests of exact search and re-ranking, against NumPy and by hand."""

import threading

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.evaluation.search import BackgroundSearcher, FaissSearcher, Reranker

QUERIES = np.array([[1, 0], [0, 1]], np.float32)
PASSAGES = np.array([[3, 1], [1, 5], [2, 2], [0, 9]], np.float32)


def search(queries, passages, depth, *, similarity="dot", cuts=(), order=None, **settings):
    """Searches the passages in this order, in chunks that end at these positions."""
    order = np.arange(len(passages)) if order is None else np.asarray(order)
    searcher = FaissSearcher(queries, depth, similarity, **settings)
    for rows in np.split(order, sorted(set(cuts))):
        if len(rows):
            searcher.add(passages[rows], rows.astype(np.int64))
    return searcher.hits()


def brute(queries, passages, depth):
    """Returns the best scores and rows by NumPy, equal scores in document order."""
    scores = queries @ passages.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores, rows, 1), rows


def whole_numbers(count, dim, seed, most=50):
    return np.random.default_rng(seed).integers(-most, most + 1, (count, dim)).astype("f4")


@st.composite
def chunkings(draw, count):
    cuts = draw(st.lists(st.integers(1, max(count - 1, 1)), max_size=4))
    return {"cuts": cuts, "order": draw(st.permutations(range(count)))}


def test_by_hand():
    hits = search(QUERIES, PASSAGES, 3)
    assert hits.rows.tolist() == [[0, 2, 1], [3, 1, 2]]
    assert hits.scores.tolist() == [[3, 2, 1], [9, 5, 2]]
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)


def test_cosine_by_hand():
    hits = search(QUERIES, PASSAGES, 4, similarity="cosine")
    assert hits.rows.tolist() == [[0, 2, 1, 3], [3, 1, 2, 0]]
    np.testing.assert_allclose(hits.scores[1], [1, 5 / 26**0.5, 0.5**0.5, 0.1**0.5], rtol=1e-6)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2, 3)])
def test_depth_beyond_the_corpus_gives_fewer_hits_and_no_filler(cuts):
    hits = search(QUERIES, PASSAGES, 1000, cuts=cuts)
    assert hits.rows.shape == hits.scores.shape == (2, 4)
    assert sorted(hits.rows[0]) == sorted(hits.rows[1]) == [0, 1, 2, 3]


@given(
    st.integers(1, 60), st.integers(1, 25), st.integers(1, 70), st.integers(0, 99), st.data()
)
def test_chunks_in_any_order_give_what_brute_force_gives(count, queries, depth, seed, data):
    passages = whole_numbers(count, 4, seed)
    asked = whole_numbers(queries, 4, seed + 1)
    hits = search(asked, passages, depth, **data.draw(chunkings(count)))
    scores, rows = brute(asked, passages, depth)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.scores, scores)
    assert hits.rows.shape[1] == min(depth, count)


@given(
    st.integers(1, 60), st.integers(1, 30), st.integers(1, 20), st.integers(0, 99), st.data()
)
def test_hits_with_equal_scores_are_in_document_order(count, queries, depth, seed, data):
    passages = whole_numbers(count, 2, seed, most=1)  # nine vectors at most: ties everywhere
    asked = whole_numbers(queries, 2, seed + 1, most=1)
    hits = search(asked, passages, depth, **data.draw(chunkings(count)))
    np.testing.assert_array_equal(hits.rows, brute(asked, passages, depth)[1])


@pytest.mark.parametrize("cuts", [(), (2,), (250,), (100, 200, 300, 400)])
@pytest.mark.parametrize("depth", [1, 10, 120])  # FAISS selects in another way above 100
def test_a_collapsed_encoder_finds_the_first_documents(depth, cuts):
    same = np.ones((500, 3), np.float32)
    hits = search(same[:30], same, depth, cuts=cuts, order=np.arange(500)[::-1])
    assert (hits.rows == np.arange(depth)).all()
    assert (hits.scores == 3).all()


def test_a_tie_at_the_last_place_affects_only_its_query():
    passages = np.array([[1, 0], [2, 3], [2, 1], [2, 2]], np.float32)
    hits = search(QUERIES, passages, 2, order=[3, 2, 1, 0])
    assert hits.rows.tolist() == [[1, 2], [1, 3]]
    assert hits.scores.tolist() == [[2, 2], [3, 2]]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99), st.data())
def test_cosine_equals_dot_of_unit_vectors(count, depth, seed, data):
    rng = np.random.default_rng(seed)
    passages, asked = rng.normal(size=(count, 5)), rng.normal(size=(6, 5))
    passages, asked = passages.astype("f4"), asked.astype("f4")

    def unit(vectors):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    chunks = data.draw(chunkings(count))
    cosine = search(asked * 7, passages * 3, depth, similarity="cosine", **chunks)
    dot = search(unit(asked), unit(passages), depth, **chunks)
    np.testing.assert_array_equal(cosine.rows, dot.rows)
    np.testing.assert_allclose(cosine.scores, dot.scores, atol=1e-6)
    assert np.abs(cosine.scores).max() <= 1 + 1e-6


def test_cosine_accepts_a_vector_of_zeros():
    hits = search(
        QUERIES, np.array([[0, 0], [0, -4], [2, 0]], np.float32), 3, similarity="cosine"
    )
    assert hits.rows.tolist() == [[2, 0, 1], [0, 2, 1]]
    assert np.isfinite(hits.scores).all()


def test_the_given_arrays_are_not_changed():
    passages, asked = PASSAGES.copy(), QUERIES.copy()
    search(asked, passages, 2, similarity="cosine")
    np.testing.assert_array_equal(passages, PASSAGES)
    np.testing.assert_array_equal(asked, QUERIES)


def knn(queries, vectors, k):
    queries, vectors = queries.astype("f4"), vectors.astype("f4")
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(2, 5), st.integers(0, 99), st.data())
def test_several_devices_find_what_one_device_finds(count, depth, devices, seed, data):
    passages = whole_numbers(count, 2, seed, most=2)
    asked = whole_numbers(5, 2, seed + 1, most=2)
    hits = search(asked, passages, depth, knns=[knn] * devices, **data.draw(chunkings(count)))
    scores, rows = brute(asked, passages, depth)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.scores, scores)


def test_float16_rounds_vectors_but_not_scores():
    # 2049 is 2048 in float16, so both are equal there; their sum of 1 + 2048 is not rounded.
    passages = np.array([[2048, 1], [2049, 1]], np.float32)
    asked = np.array([[1, 1]], np.float32)
    assert search(asked, passages, 2).rows.tolist() == [[1, 0]]
    hits = search(asked, passages, 2, dtype="float16")
    assert hits.rows.tolist() == [[0, 1]]
    assert hits.scores.tolist() == [[2049, 2049]]


def rerank(queries, passages, candidates, *, similarity="dot", cuts=(), order=None, **form):
    """Re-ranks these candidates, with the passages in chunks as in `search`."""
    order = np.arange(len(passages)) if order is None else np.asarray(order)
    rows = [np.array(rows_of_query, np.int64) for rows_of_query in candidates]
    reranker = Reranker(queries, rows, similarity, **form)
    for part in np.split(order, sorted(set(cuts))):
        if len(part):
            reranker.add(passages[part], part.astype(np.int64))
    return reranker.hits()


def test_reranking_by_hand():
    hits = rerank(QUERIES, PASSAGES, [[3, 2], [0, 1, 2]], cuts=(1, 3))
    assert hits.rows.tolist() == [[2, 3, -1], [1, 2, 0]]
    assert hits.scores.tolist() == [[2, 0, -np.inf], [5, 2, 1]]
    assert hits.counts.tolist() == [2, 3]
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)


def test_a_query_without_candidates_has_no_hits():
    assert rerank(QUERIES, PASSAGES, [[], [1]]).rows.tolist() == [[-1], [1]]
    assert rerank(QUERIES, PASSAGES, [[], []]).rows.shape == (2, 0)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99), st.data())
def test_reranking_all_passages_equals_searching_them(count, queries, seed, data):
    passages = whole_numbers(count, 2, seed, most=3)
    asked = whole_numbers(queries, 2, seed + 1, most=3)
    candidates = [data.draw(st.permutations(range(count)))] * queries
    hits = rerank(asked, passages, candidates, **data.draw(chunkings(count)))
    searched = search(asked, passages, count)
    np.testing.assert_array_equal(hits.rows, searched.rows)
    np.testing.assert_array_equal(hits.scores, searched.scores)
    cosine = rerank(asked, passages, candidates, similarity="cosine")
    searched = search(asked, passages, count, similarity="cosine")
    np.testing.assert_allclose(cosine.scores, searched.scores, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99), st.data())
def test_reranking_equals_searching_without_other_passages(count, queries, seed, data):
    passages = whole_numbers(count, 2, seed, most=2)
    asked = whole_numbers(queries, 2, seed + 1, most=2)
    own = st.sets(st.integers(0, count - 1)).map(sorted)
    candidates = [data.draw(own) for _ in range(queries)]
    hits = rerank(asked, passages, candidates, **data.draw(chunkings(count)))
    every = search(asked, passages, count).rows
    for rows, hit_rows, own in zip(every, hits.rows, candidates, strict=True):
        filler = [-1] * (len(hit_rows) - len(own))
        assert hit_rows.tolist() == [row for row in rows.tolist() if row in own] + filler


def test_reranking_rounds_vectors_as_searching_does():
    passages = np.array([[2048, 1], [2049, 1]], np.float32)
    hits = rerank(np.array([[1, 1]], np.float32), passages, [[0, 1]], dtype="float16")
    assert (hits.rows.tolist(), hits.scores.tolist()) == ([[0, 1]], [[2049, 2049]])


def test_a_search_in_the_background_finds_the_same():
    with BackgroundSearcher(FaissSearcher(QUERIES, 3, "dot")) as searcher:
        for row in range(4):
            searcher.add(PASSAGES[row : row + 1], np.array([row]))
        assert searcher.hits().rows.tolist() == [[0, 2, 1], [3, 1, 2]]


class BlockedSearcher:
    """A Searcher whose search waits for an event and then fails."""

    def __init__(self):
        self.released, self.searched = threading.Event(), []

    def add(self, vectors, rows):
        self.released.wait(10)
        self.searched.append(rows)
        raise ValueError("no memory")


def test_a_background_search_does_not_block_its_caller_and_raises_later():
    blocked = BlockedSearcher()
    with BackgroundSearcher(blocked) as searcher:
        searcher.add(PASSAGES, np.arange(4))
        assert not blocked.searched
        blocked.released.set()
        with pytest.raises(ValueError, match="no memory"):
            searcher.hits()


def test_leaving_the_context_waits_for_the_search():
    blocked = BlockedSearcher()
    with BackgroundSearcher(blocked) as searcher:
        searcher.add(PASSAGES, np.arange(4))
        threading.Timer(0.05, blocked.released.set).start()
    assert len(blocked.searched) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("depth", [10, 1000, 3000])
def test_gpus_find_what_the_cpu_finds(dtype, depth):
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        pytest.skip("FAISS finds no GPU")
    rng = np.random.default_rng(0)
    passages = rng.standard_normal((20_000, 64), np.float32)
    expected = search(passages[:50], passages, depth, dtype=dtype, knns=[knn])
    hits = search(passages[:50], passages, depth, dtype=dtype, cuts=(7_000,))
    np.testing.assert_allclose(hits.scores, expected.scores, rtol=1e-3, atol=1e-2)
    assert (hits.rows == expected.rows).mean() > 0.99
