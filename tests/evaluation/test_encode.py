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
    """[30, DIM] whole numbers, so that sums have one value in whatever order."""
    return np.random.default_rng(seed).integers(-50, 50, (30, DIM)).astype(np.float32)


def sums(params, ids, mask):
    """The tokens' vectors, weighted by their places and added."""
    places = jnp.arange(1, ids.shape[1] + 1, dtype=jnp.float32)
    weights = jnp.where(mask, places[None, :], 0.0)
    return jnp.einsum("bld,bl->bd", params["table"][ids], weights)


def expected(texts, vectors):
    """The same by numpy, text by text, with the tiny tokenizer's special tokens."""
    rows = [[2, *text, 3] for text in texts]
    return np.array([vectors[row].T @ np.arange(1, len(row) + 1) for row in rows])


def on(devices, **leaves):
    """Parameters as a restored checkpoint has them."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("device",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(leaves, everywhere)


@functools.cache
def tower(function, devices, batch_tokens):
    return Tower(function, jax.devices()[:devices], batch_tokens)


def encoded(store, bar, *, function=sums, devices=1, batch_tokens=256, vectors=None):
    params = on(jax.devices()[:devices], table=table() if vectors is None else vectors)
    return list(tower(function, devices, batch_tokens).chunks(params, store, bar))


@contextlib.contextmanager
def compilations():
    """The list of what is compiled in this context."""
    seen = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("batch_tokens", [1, 100, 256])
def test_vectors_equal_numpys(store, silent, devices, batch_tokens):
    texts = store(TEXTS)
    assert len(texts.buckets) > 1
    chunks = encoded(texts, silent(), devices=devices, batch_tokens=batch_tokens)
    vectors = matrix(iter(chunks), texts.count)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected(TEXTS, table()))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.sampled_from([1, 4]))
def test_every_row_comes_once(store, silent, lengths, devices):
    texts = [tuple([4 + row] * length) for row, length in enumerate(lengths)]
    chunks = encoded(store(texts), silent(), devices=devices)
    rows = np.concatenate([chunk.rows for chunk in chunks])
    assert sorted(rows.tolist()) == list(range(len(texts)))
    vectors = np.concatenate([chunk.vectors for chunk in chunks])
    np.testing.assert_array_equal(vectors, expected(texts, table())[rows])


def test_a_device_of_ones_choice(store, silent):
    device = jax.devices()[2]

    made, params = Tower(sums, [device], 256), on([device], table=table())
    assert {leaf.device for leaf in jax.tree.leaves(params)} == {device}
    with jax.transfer_guard_device_to_device("disallow_explicit"):
        vectors = matrix(made.chunks(params, store(TEXTS[:4]), silent()), 4)
    np.testing.assert_array_equal(vectors, expected(TEXTS[:4], table()))


def test_large_corpora_come_in_several_chunks(store, silent):
    made = Tower(sums, jax.devices()[:1], 64, chunk_floats=24)
    chunks = list(made.chunks(on(jax.devices()[:1], table=table()), store(TEXTS), silent()))
    assert len(chunks) > 2
    vectors = matrix(iter(chunks), len(TEXTS))
    np.testing.assert_array_equal(vectors, expected(TEXTS, table()))


def test_the_bar_counts_texts_and_not_padding(store, silent):
    bar = silent()
    encoded(store(TEXTS), bar, devices=4)
    assert bar.done == len(TEXTS)


def shapes(texts, bar, batch_tokens):
    """Rows and width of each batch, on one device."""
    made, seen = Tower(sums, jax.devices()[:1], batch_tokens), []
    run = made.run

    def note(params, ids, lengths):
        seen.append(ids.shape[1:])
        return run(params, ids, lengths)

    made.run = note
    params = on(jax.devices()[:1], table=table())
    vectors = matrix(made.chunks(params, texts, bar), texts.count)
    return seen, vectors


def test_what_fills_no_batch_of_its_width_joins_the_next_wider_one(store, silent):
    # 19 texts of 8 tokens, 15 of 16: with 64 tokens a batch 8 rows and 4 rows.
    texts = [(5,) * 6] * 19 + [(6,) * 14] * 15
    found, vectors = shapes(store(texts), silent(), 64)
    # 3 of 8 tokens are left over: 5 empty rows would be 40 tokens, 8 more in each of 3 are 24.
    assert found == [(8, 8)] * 2 + [(4, 16)] * 5
    np.testing.assert_array_equal(vectors, expected(texts, table()))


def test_what_nearly_fills_a_batch_stays_in_it(store, silent):
    texts = [(5,) * 6] * 23 + [(6,) * 14] * 16
    found, vectors = shapes(store(texts), silent(), 64)
    assert found == [(8, 8)] * 3 + [(4, 16)] * 4
    np.testing.assert_array_equal(vectors, expected(texts, table()))


def test_another_checkpoint_compiles_nothing(store, silent):
    devices, texts = jax.devices()[:2], store(TEXTS)
    made = Tower(sums, devices, 16)
    with compilations() as first:
        matrix(made.chunks(on(devices, table=table()), texts, silent()), texts.count)
    with compilations() as second:
        params = on(devices, table=table(seed=1))
        vectors = matrix(made.chunks(params, texts, silent()), texts.count)
    assert len(first) >= len(texts.buckets) > 1
    assert second == []
    np.testing.assert_array_equal(vectors, expected(TEXTS, table(seed=1)))


def abstract(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


@pytest.mark.parametrize("devices", [1, 2])
def test_what_was_compiled_ahead_runs_without_compiling(store, silent, devices):
    texts = store(TEXTS)
    made = Tower(sums, jax.devices()[:devices], 16)
    params = on(jax.devices()[:devices], table=table())
    with ThreadPoolExecutor(2) as workers:
        made.compile_ahead(abstract(params), texts, workers)
    with compilations() as seen:
        vectors = matrix(made.chunks(params, texts, silent()), texts.count)
    assert seen == []
    np.testing.assert_array_equal(vectors, expected(TEXTS, table()))


def test_what_cannot_be_compiled_ahead_says_so_where_it_is_run(store, silent):
    def broken(params, ids, mask):
        raise ValueError("no such layer")

    texts = store(TEXTS)
    made = Tower(broken, jax.devices()[:1], 16)
    params = on(jax.devices()[:1], table=table())
    with ThreadPoolExecutor(2) as workers:
        made.compile_ahead(abstract(params), texts, workers)
    with pytest.raises(ValueError, match="no such layer"):
        list(made.chunks(params, texts, silent()))


def test_a_shape_is_compiled_once(store, silent):
    shapes = []

    def noting(params, ids, mask):
        shapes.append(ids.shape)
        return sums(params, ids, mask)

    texts = store(TEXTS * 5)
    encoded(texts, silent(), function=noting, devices=2, batch_tokens=32)
    assert sorted({width for _, width in shapes}) == [b.width for b in texts.buckets]
    assert len(shapes) == len(set(shapes)) == len(texts.buckets)


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_a_batch_is_within_its_budget(store, silent, batch_tokens):
    shapes = []

    def noting(params, ids, mask):
        shapes.append(ids.shape)
        return sums(params, ids, mask)

    texts = store(TEXTS * 20)
    encoded(texts, silent(), function=noting, devices=2, batch_tokens=batch_tokens)
    assert all(rows * width <= max(batch_tokens, width) for rows, width in shapes)


def test_padded_tokens_do_not_reach_the_encoder_unmasked(store, silent):
    vectors = table()
    vectors[0] = 1e9  # the padding's
    chunks = encoded(store(TEXTS), silent(), vectors=vectors, devices=2)
    found = matrix(iter(chunks), len(TEXTS))
    np.testing.assert_array_equal(found, expected(TEXTS, vectors))


def means(params, ids, mask):
    return sums(params, ids, mask) / mask.sum(1, keepdims=True)  # NaN where nothing is


def test_padded_rows_may_be_nan(store, silent):
    found = matrix(iter(encoded(store(TEXTS), silent(), function=means, devices=4)), len(TEXTS))
    lengths = np.array([[length + 2] for length in LENGTHS])
    np.testing.assert_allclose(found, expected(TEXTS, table()) / lengths, rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite(store, silent, poison):
    vectors = table()
    vectors[11] = poison
    with pytest.raises(NonFiniteError, match="NaN or infinity.* and its own code"):
        encoded(store([(4, 5), (6, 11), (7,)]), silent(), vectors=vectors)


def test_half_precision_comes_out_as_float32(store, silent):
    def half(params, ids, mask):
        return sums(params, ids, mask).astype(jnp.bfloat16)

    (chunk,) = encoded(store([(4,), (5, 6)]), silent(), function=half)
    assert chunk.vectors.dtype == np.float32
    rounded = expected([(4,), (5, 6)], table()).astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(chunk.vectors, rounded[chunk.rows])


def test_a_batch_for_a_cpu_is_small():
    assert default_batch_tokens(jax.devices("cpu")[0]) == 1024
