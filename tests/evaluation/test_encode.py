"""Tests of encoding: batches, devices, compilation, and vectors that equal those of NumPy."""

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.errors import NonFiniteError
from jaxval.evaluation.encode import Tower, default_batch_tokens, matrix

LENGTHS = [5, 0, 1, 14, 6, 22, 3, 2, 9, 6, 13, 17, 7, 1, 22, 0, 20, 4, 5]
TEXTS = [
    tuple(4 + (7 * row + place) % 26 for place in range(length))
    for row, length in enumerate(LENGTHS)
]
DIM = 3


def table(seed=0):
    """Returns [30, DIM] integers as float32, whose sums are exact in any order."""
    return np.random.default_rng(seed).integers(-50, 50, (30, DIM)).astype(np.float32)


def sums(params, ids, mask):
    """The encoder: the sum of the tokens' vectors, weighted by their positions from 1."""
    places = jnp.arange(1, ids.shape[1] + 1, dtype=jnp.float32)
    weights = jnp.where(mask, places[None, :], 0.0)
    return jnp.einsum("bld,bl->bd", params["table"][ids], weights)


def expected(texts, vectors):
    """Computes `sums` of texts by NumPy, with the tiny tokenizer's special tokens."""
    rows = [[2, *text, 3] for text in texts]
    return np.array([vectors[row].T @ np.arange(1, len(row) + 1) for row in rows])


def on(devices, **leaves):
    """Returns parameters on the devices, as `place` does."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("device",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(leaves, everywhere)


@functools.cache
def cached_tower(function, devices, batch_tokens):
    return Tower(function, jax.devices()[:devices], batch_tokens)


def encoded(store, bar, *, function=sums, devices=1, batch_tokens=256, vectors=None):
    params = on(jax.devices()[:devices], table=table() if vectors is None else vectors)
    return list(cached_tower(function, devices, batch_tokens).chunks(params, store, bar))


@contextlib.contextmanager
def compilations():
    """Yields a list that gets an entry for each compilation in this context."""
    events = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("batch_tokens", [1, 100, 256])
def test_vectors_equal_those_of_numpy(store, silent, devices, batch_tokens):
    texts = store(TEXTS)
    assert len(texts.buckets) > 1
    chunks = encoded(texts, silent(), devices=devices, batch_tokens=batch_tokens)
    vectors = matrix(iter(chunks), texts.count)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected(TEXTS, table()))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.sampled_from([1, 4]))
def test_each_row_occurs_once(store, silent, lengths, devices):
    texts = [tuple([4 + row] * length) for row, length in enumerate(lengths)]
    chunks = encoded(store(texts), silent(), devices=devices)
    rows = np.concatenate([chunk.rows for chunk in chunks])
    assert sorted(rows.tolist()) == list(range(len(texts)))
    vectors = np.concatenate([chunk.vectors for chunk in chunks])
    np.testing.assert_array_equal(vectors, expected(texts, table())[rows])


def test_only_the_given_device_is_used(store, silent):
    device = jax.devices()[2]

    tower, params = Tower(sums, [device], 256), on([device], table=table())
    assert set().union(*(leaf.devices() for leaf in jax.tree.leaves(params))) == {device}
    with jax.transfer_guard_device_to_device("disallow_explicit"):
        vectors = matrix(tower.chunks(params, store(TEXTS[:4]), silent()), 4)
    np.testing.assert_array_equal(vectors, expected(TEXTS[:4], table()))


def test_a_large_corpus_gives_several_chunks(store, silent):
    tower = Tower(sums, jax.devices()[:1], 64, chunk_floats=24)
    chunks = list(tower.chunks(on(jax.devices()[:1], table=table()), store(TEXTS), silent()))
    assert len(chunks) > 2
    vectors = matrix(iter(chunks), len(TEXTS))
    np.testing.assert_array_equal(vectors, expected(TEXTS, table()))


def test_the_bar_counts_texts_without_padding(store, silent):
    bar = silent()
    encoded(store(TEXTS), bar, devices=4)
    assert bar.done == len(TEXTS)


def shapes(texts, bar, batch_tokens):
    """Returns (rows, width) of each batch on one device, and the vectors."""
    tower, batches = Tower(sums, jax.devices()[:1], batch_tokens), []
    run = tower.run

    def note(params, ids, lengths):
        batches.append(ids.shape[1:])
        return run(params, ids, lengths)

    tower.run = note
    params = on(jax.devices()[:1], table=table())
    vectors = matrix(tower.chunks(params, texts, bar), texts.count)
    return batches, vectors


def test_texts_that_fill_no_batch_join_the_next_wider_bucket(store, silent):
    # 19 texts of 8 tokens, 15 of 16: with 64 tokens a batch 8 rows and 4 rows.
    texts = [(5,) * 6] * 19 + [(6,) * 14] * 15
    batches, vectors = shapes(store(texts), silent(), 64)
    # 3 of 8 tokens are left over: 5 empty rows would be 40 tokens, 8 more in each of 3 are 24.
    assert batches == [(8, 8)] * 2 + [(4, 16)] * 5
    np.testing.assert_array_equal(vectors, expected(texts, table()))


def test_texts_that_nearly_fill_a_batch_stay_in_their_bucket(store, silent):
    texts = [(5,) * 6] * 23 + [(6,) * 14] * 16
    batches, vectors = shapes(store(texts), silent(), 64)
    assert batches == [(8, 8)] * 3 + [(4, 16)] * 4
    np.testing.assert_array_equal(vectors, expected(texts, table()))


def test_a_second_checkpoint_compiles_nothing(store, silent):
    devices, texts = jax.devices()[:2], store(TEXTS)
    tower = Tower(sums, devices, 16)
    with compilations() as first:
        matrix(tower.chunks(on(devices, table=table()), texts, silent()), texts.count)
    with compilations() as second:
        params = on(devices, table=table(seed=1))
        vectors = matrix(tower.chunks(params, texts, silent()), texts.count)
    assert len(first) >= len(texts.buckets) > 1
    assert second == []
    np.testing.assert_array_equal(vectors, expected(TEXTS, table(seed=1)))


def abstract(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


@pytest.mark.parametrize("devices", [1, 2])
def test_shapes_compiled_ahead_are_not_compiled_again(store, silent, devices):
    texts = store(TEXTS)
    tower = Tower(sums, jax.devices()[:devices], 16)
    params = on(jax.devices()[:devices], table=table())
    with ThreadPoolExecutor(2) as workers:
        tower.compile_ahead(abstract(params), texts, workers)
    with compilations() as events:
        vectors = matrix(tower.chunks(params, texts, silent()), texts.count)
    assert events == []
    np.testing.assert_array_equal(vectors, expected(TEXTS, table()))


def test_an_error_of_compiling_ahead_is_raised_by_run(store, silent):
    def broken(params, ids, mask):
        raise ValueError("no such layer")

    texts = store(TEXTS)
    tower = Tower(broken, jax.devices()[:1], 16)
    params = on(jax.devices()[:1], table=table())
    with ThreadPoolExecutor(2) as workers:
        tower.compile_ahead(abstract(params), texts, workers)
    with pytest.raises(ValueError, match="no such layer"):
        list(tower.chunks(params, texts, silent()))


def test_each_shape_is_compiled_once(store, silent):
    shapes = []

    def noting(params, ids, mask):
        shapes.append(ids.shape)
        return sums(params, ids, mask)

    texts = store(TEXTS * 5)
    encoded(texts, silent(), function=noting, devices=2, batch_tokens=32)
    assert sorted({width for _, width in shapes}) == [b.width for b in texts.buckets]
    assert len(shapes) == len(set(shapes)) == len(texts.buckets)


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_a_batch_has_at_most_batch_tokens(store, silent, batch_tokens):
    shapes = []

    def noting(params, ids, mask):
        shapes.append(ids.shape)
        return sums(params, ids, mask)

    texts = store(TEXTS * 20)
    encoded(texts, silent(), function=noting, devices=2, batch_tokens=batch_tokens)
    assert all(rows * width <= max(batch_tokens, width) for rows, width in shapes)


def test_padding_is_masked(store, silent):
    vectors = table()
    vectors[0] = 1e9  # the padding's
    chunks = encoded(store(TEXTS), silent(), vectors=vectors, devices=2)
    result = matrix(iter(chunks), len(TEXTS))
    np.testing.assert_array_equal(result, expected(TEXTS, vectors))


def means(params, ids, mask):
    return sums(params, ids, mask) / mask.sum(1, keepdims=True)  # NaN where nothing is


def test_vectors_of_empty_rows_may_be_nan(store, silent):
    result = matrix(
        iter(encoded(store(TEXTS), silent(), function=means, devices=4)), len(TEXTS)
    )
    lengths = np.array([[length + 2] for length in LENGTHS])
    np.testing.assert_allclose(result, expected(TEXTS, table()) / lengths, rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_vector_with_nan_or_infinity_is_an_error(store, silent, poison):
    vectors = table()
    vectors[11] = poison
    with pytest.raises(NonFiniteError, match="NaN or infinity.* and its own code"):
        encoded(store([(4, 5), (6, 11), (7,)]), silent(), vectors=vectors)


def test_vectors_of_half_precision_become_float32(store, silent):
    def half(params, ids, mask):
        return sums(params, ids, mask).astype(jnp.bfloat16)

    (chunk,) = encoded(store([(4,), (5, 6)]), silent(), function=half)
    assert chunk.vectors.dtype == np.float32
    rounded = expected([(4,), (5, 6)], table()).astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(chunk.vectors, rounded[chunk.rows])


def test_the_default_batch_on_a_cpu_has_1024_tokens():
    assert default_batch_tokens(jax.devices("cpu")[0]) == 1024
