"""Encodes texts: token store -> length buckets -> batches of static shape -> vectors.

Only `_spread` uses jax.pmap, so that another transformation can replace it there.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxval.corpus.token_store import Bucket, TokenStore
from jaxval.encoders.adapter import Encode
from jaxval.errors import NonFiniteError
from jaxval.records import Bar, Params

_Signature = tuple[tuple[int, ...], np.dtype, np.dtype]
"""The shape of a batch, [devices, rows, width], and the dtypes of its ids and lengths."""

_IN_FLIGHT = 4
_ROW_MULTIPLE = 8
_LEAST_TOKENS = 64


class Tokens(Protocol):
    """Texts as token ids, in buckets of one width each: a TokenStore, or a part of one."""

    @property
    def count(self) -> int:
        """Number of texts."""
        ...

    @property
    def buckets(self) -> Sequence[Bucket]:
        """The buckets, from the narrowest to the widest. No bucket is empty."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """[count] uint16, the number of tokens of the text at each position."""
        ...

    @property
    def rows(self) -> np.ndarray:
        """[count] int64, the row in document order of the text at each position."""
        ...

    def matrix(self, bucket: Bucket) -> np.ndarray:
        """Returns the token ids of a bucket, [bucket.count, bucket.width]."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Some vectors of a collection, in no particular order.

    Attributes:
      vectors: [n, dim] float32.
      rows: [n] int64, the row in document order of each vector.
    """

    vectors: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class _Batch:
    """The texts at the positions start to start + count of a store, split over the devices.

    Attributes:
      ids: [devices, rows, width] token ids. Rows after the first `count` are empty.
      lengths: [devices, rows], the number of tokens of each text.
      start: The first position in the store.
      count: Number of texts.
    """

    ids: np.ndarray
    lengths: np.ndarray
    start: int
    count: int


@dataclass(frozen=True)
class _Span:
    """The positions of a store that form one batch.

    Attributes:
      start: The first position.
      count: Number of texts.
      width: Number of tokens of each row, including padding.
      rows: Number of rows on all devices.
    """

    start: int
    count: int
    width: int
    rows: int


class Tower:
    """One encoding function on the devices, compiled once for each shape.

    Args:
      encode: (params, ids [batch, length], mask [batch, length]) -> [batch, dim].
      devices: The devices. Each takes an equal part of each batch.
      batch_tokens: Maximum number of tokens per batch on each device, including padding.
      chunk_floats: Approximate number of floats in the vectors of a chunk. None takes a
        value that suits the device.

    Attributes:
      batch_tokens: The current number of tokens per batch on each device.
      chunk_floats: Approximate number of floats in the vectors of a chunk.
    """

    def __init__(
        self,
        encode: Encode,
        devices: Sequence[jax.Device],
        batch_tokens: int,
        chunk_floats: int | None = None,
    ):
        self._devices = tuple(devices)
        self.batch_tokens = batch_tokens
        self.chunk_floats = chunk_floats or _default_chunk_floats(self._devices[0])
        self._spread = _spread(encode, self._devices)
        self._ahead: dict[_Signature, Future[Callable[..., Any] | None]] = {}

    def run(self, params: Params, ids: Any, lengths: Any) -> jax.Array:
        """Encodes one batch.

        Args:
          params: The parameters on the devices, as `place` returns them.
          ids: [devices, rows, width] token ids.
          lengths: [devices, rows], the number of tokens of each text.

        Returns:
          [devices, rows, dim] float32, on the devices.
        """
        ahead = self._ahead.get((ids.shape, ids.dtype, lengths.dtype))
        compiled = ahead.result() if ahead else None
        vectors: jax.Array = (compiled or self._spread)(params, ids, lengths)
        return vectors

    def compile_ahead(self, params: Params, store: TokenStore, workers: Executor) -> None:
        """Compiles in the background what the batches of a store need.

        `run` waits for the compilation of its shape.

        Args:
          params: The parameters as a tree of jax.ShapeDtypeStruct.
          store: The texts that will be encoded.
          workers: The threads that compile. Each keeps one core busy.
        """
        types = np.dtype(store.dtype), store.lengths.dtype
        for span in self._spans(store.buckets):
            signature = (self._shape(span), *types)
            if signature not in self._ahead:
                self._ahead[signature] = workers.submit(self._compile, params, *signature)

    def compile(self, params: Params, ids: Any, lengths: Any) -> Any:
        """Returns the jax.stages.Compiled of a batch, given as arrays or as their shapes."""
        return self._spread.lower(params, ids, lengths).compile()

    def _compile(
        self, params: Params, shape: tuple[int, ...], ids_dtype: np.dtype, len_dtype: np.dtype
    ) -> Callable[..., Any] | None:
        ids = jax.ShapeDtypeStruct(shape, ids_dtype)
        lengths = jax.ShapeDtypeStruct(shape[:-1], len_dtype)
        try:
            compiled: Callable[..., Any] = self.compile(params, ids, lengths)
        except Exception:  # `run` compiles again and raises the error where it is handled.
            return None
        return compiled

    def halve(self) -> int | None:
        """Halves the batch for the rest of the run.

        Returns:
          The new number of tokens per batch, or None if the batch has the smallest size.
        """
        if self.batch_tokens <= _LEAST_TOKENS:
            return None
        self.batch_tokens //= 2
        return self.batch_tokens

    def shapes(self, store: Tokens) -> collections.Counter[tuple[int, int]]:
        """Returns the number of batches of each shape, (rows on all devices, width)."""
        spans = self._spans(store.buckets)
        return collections.Counter((span.rows, span.width) for span in spans)

    def chunks(self, params: Params, store: Tokens, bar: Bar) -> Iterator[Chunk]:
        """Yields the vectors of all texts of a store, in chunks of bounded size.

        Args:
          params: The parameters on every device, as `place` returns them, so that no batch
            copies them.
          store: The texts.
          bar: Shows the progress, one unit for each text.

        Raises:
          NonFiniteError: A vector has NaN or infinity.
        """
        in_flight: collections.deque[tuple[_Batch, jax.Array]] = collections.deque()
        collector = _Collector(store, self.chunk_floats)
        with bar:
            for batch in self._batches(store):
                vectors = self.run(params, batch.ids, batch.lengths)
                vectors.copy_to_host_async()
                in_flight.append((batch, vectors))
                if len(in_flight) >= _IN_FLIGHT:
                    yield from collector.add(*in_flight.popleft(), bar)
            while in_flight:
                yield from collector.add(*in_flight.popleft(), bar)
            yield from collector.rest()

    def _batches(self, store: Tokens) -> Iterator[_Batch]:
        matrices = [store.matrix(bucket) for bucket in store.buckets]
        for span in self._spans(store.buckets):
            ids = _rows(store.buckets, matrices, span)
            lengths = np.zeros(span.rows, store.lengths.dtype)
            lengths[: span.count] = store.lengths[span.start : span.start + span.count]
            shape = self._shape(span)
            yield _Batch(
                ids.reshape(shape), lengths.reshape(shape[:-1]), span.start, span.count
            )

    def _shape(self, span: _Span) -> tuple[int, int, int]:
        return len(self._devices), span.rows // len(self._devices), span.width

    def _spans(self, buckets: Sequence[Bucket]) -> Iterator[_Span]:
        """Yields the span of each batch.

        The texts that do not fill the last batch of their width join the next wider bucket
        where that costs fewer tokens of padding.
        """
        start = 0
        for bucket, wider in itertools.zip_longest(buckets, buckets[1:]):
            left = bucket.start + bucket.count - start
            rows = self._rows(bucket.width, None if wider else left)
            whole = left - left % rows
            for at in range(start, start + whole, rows):
                yield _Span(at, rows, bucket.width, rows)
            start, left = start + whole, left - whole
            padding = (rows - left) * bucket.width
            if left and not (wider and left * (wider.width - bucket.width) < padding):
                yield _Span(start, left, bucket.width, rows)
                start += left

    def _rows(self, width: int, most: int | None) -> int:
        """Returns the rows of a batch on all devices, within `batch_tokens` and `most`."""
        budget = self.batch_tokens // width
        rows = budget - budget % _ROW_MULTIPLE if budget > _ROW_MULTIPLE else max(1, budget)
        if most is not None:
            rows = min(rows, _round_up(-(-most // len(self._devices)), _ROW_MULTIPLE))
        return max(1, rows) * len(self._devices)


def _rows(buckets: Sequence[Bucket], matrices: Sequence[np.ndarray], span: _Span) -> np.ndarray:
    """Returns the token ids of a span, [rows, width]; no copy if one bucket contains it."""
    parts = [
        matrix[
            max(0, span.start - bucket.start) : max(0, span.start + span.count - bucket.start)
        ]
        for bucket, matrix in zip(buckets, matrices, strict=True)
    ]
    parts = [part for part in parts if len(part)]
    if parts[0].shape == (span.rows, span.width):
        return parts[0]
    ids, at = np.zeros((span.rows, span.width), parts[0].dtype), 0
    for part in parts:
        ids[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return ids


class _Collector:
    """Gathers the vectors of batches into chunks."""

    def __init__(self, store: Tokens, chunk_floats: int):
        self._store = store
        self._chunk_floats = chunk_floats
        self._vectors: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._floats = 0

    def add(self, batch: _Batch, result: jax.Array, bar: Bar) -> Iterator[Chunk]:
        vectors = np.asarray(result).reshape(-1, result.shape[-1])[: batch.count]
        if not np.isfinite(vectors).all():
            raise NonFiniteError(
                "the encoder made vectors with NaN or infinity from finite parameters:"
                " check that its embeddings cover the tokenizer's ids, that its positions"
                " cover `passage_max_len`, and its own code"
            )
        self._vectors.append(vectors)
        self._rows.append(self._store.rows[batch.start : batch.start + batch.count])
        self._floats += vectors.size
        bar.update(batch.count)
        if self._floats >= self._chunk_floats:
            yield from self.rest()

    def rest(self) -> Iterator[Chunk]:
        if self._vectors:
            chunk = Chunk(np.concatenate(self._vectors), np.concatenate(self._rows))
            self._vectors, self._rows, self._floats = [], [], 0
            yield chunk


def default_batch_tokens(device: jax.Device) -> int:
    """Returns a number of tokens per batch that keeps a device of this kind busy."""
    return 1024 if device.platform == "cpu" else 65536


def _default_chunk_floats(device: jax.Device) -> int:
    """Returns 128 MiB of floats on CPU, else 512 MiB: a merge follows each chunk."""
    return 1 << (25 if device.platform == "cpu" else 27)


def matrix(chunks: Iterator[Chunk], count: int) -> np.ndarray:
    """Returns the vectors of all chunks in document order, [count, dim] float32."""
    all_chunks = list(chunks)
    vectors = np.empty((count, all_chunks[0].vectors.shape[1]), np.float32)
    for chunk in all_chunks:
        vectors[chunk.rows] = chunk.vectors
    return vectors


def place(params: Params, devices: Sequence[jax.Device]) -> Params:
    """Copies parameters from host memory to every device."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("device",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(params, replicated)


def _spread(encode: Encode, devices: tuple[jax.Device, ...]) -> Any:
    def run(params: Params, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        mask = jnp.arange(ids.shape[1])[None, :] < lengths[:, None].astype(jnp.int32)
        # By default JAX computes float32 products in TF32 on GPUs and in bfloat16 on TPUs.
        with jax.default_matmul_precision("float32"):
            return encode(params, ids.astype(jnp.int32), mask).astype(jnp.float32)

    return jax.pmap(run, in_axes=(None, 0, 0), devices=devices)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
