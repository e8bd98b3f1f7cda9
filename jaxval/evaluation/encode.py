"""Token store -> length buckets -> batches of static shape -> pmap -> vectors.

jax.pmap stands in `_spread` alone; what may follow it is swapped in there.
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
from jaxval.errors import NonFiniteError
from jaxval.records import Bar, Params

Encode = Callable[[Params, jax.Array, jax.Array], jax.Array]
_Signature = tuple[tuple[int, ...], np.dtype, np.dtype]
"""Of a batch: its shape [devices, rows, width], the types of its ids and of its lengths."""

_IN_FLIGHT = 4
_ROW_MULTIPLE = 8
_LEAST_TOKENS = 64


class Tokens(Protocol):
    """Texts as token ids, in buckets of one width each: a TokenStore, or a part of one."""

    @property
    def count(self) -> int:
        """How many texts."""
        ...

    @property
    def buckets(self) -> Sequence[Bucket]:
        """From the narrowest to the widest; none is empty."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """[count] uint16, by position."""
        ...

    @property
    def rows(self) -> np.ndarray:
        """[count] int64, the row in document order of each position."""
        ...

    def matrix(self, bucket: Bucket) -> np.ndarray:
        """[bucket.count, bucket.width] token ids."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Vectors as they come, in no order.

    Attributes:
      vectors: [n, dim] float32.
      rows: [n] int64, each vector's row in document order.
    """

    vectors: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class _Batch:
    """A span of a store, split over the devices.

    Attributes:
      ids: [devices, rows, width], lengths: [devices, rows]; rows beyond the slice are empty.
      start, count: the positions in the store that it covers.
    """

    ids: np.ndarray
    lengths: np.ndarray
    start: int
    count: int


@dataclass(frozen=True)
class _Span:
    """The positions start to start + count of a store, as one batch [rows, width]."""

    start: int
    count: int
    width: int
    rows: int


class Tower:
    """One encoding function, compiled once a shape, over the devices.

    Args:
      encode: (params, ids [batch, length], mask [batch, length]) -> [batch, dim].
      devices: each takes an equal part of each batch.
      batch_tokens: tokens a batch a device, padding included.
      chunk_floats: components of a chunk's vectors, about; None for what suits the device.

    Attributes:
      batch_tokens, chunk_floats: as they are now.
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
        """Encodes one batch; compiled once a shape.

        Args:
          params: as `place` returns them.
          ids: [devices, rows, width] integers.
          lengths: [devices, rows] integers.

        Returns:
          [devices, rows, dim] float32, on the devices.
        """
        ahead = self._ahead.get((ids.shape, ids.dtype, lengths.dtype))
        compiled = ahead.result() if ahead else None
        vectors: jax.Array = (compiled or self._spread)(params, ids, lengths)
        return vectors

    def compile_ahead(self, params: Params, store: TokenStore, workers: Executor) -> None:
        """Has the workers compile what a store's batches need; `run` waits for its own shape.

        Args:
          params: a tree of jax.ShapeDtypeStruct.
          store: what will be encoded.
          workers: threads; the compiler keeps a core busy in each.
        """
        types = np.dtype(store.dtype), store.lengths.dtype
        for span in self._spans(store.buckets):
            signature = (self._shape(span), *types)
            if signature not in self._ahead:
                self._ahead[signature] = workers.submit(self._compile, params, *signature)

    def compile(self, params: Params, ids: Any, lengths: Any) -> Any:
        """The jax.stages.Compiled of a batch like this, of arrays or of their shapes."""
        return self._spread.lower(params, ids, lengths).compile()

    def _compile(
        self, params: Params, shape: tuple[int, ...], of_ids: np.dtype, of_lengths: np.dtype
    ) -> Callable[..., Any] | None:
        ids = jax.ShapeDtypeStruct(shape, of_ids)
        lengths = jax.ShapeDtypeStruct(shape[:-1], of_lengths)
        try:
            compiled: Callable[..., Any] = self.compile(params, ids, lengths)
        except Exception:  # Whatever it is, it comes again where the batch is run.
            return None
        return compiled

    def halve(self) -> int | None:
        """Halves the batch for good; its tokens now, or None if it is as small as it gets."""
        if self.batch_tokens <= _LEAST_TOKENS:
            return None
        self.batch_tokens //= 2
        return self.batch_tokens

    def shapes(self, store: Tokens) -> collections.Counter[tuple[int, int]]:
        """How many batches of each shape, (rows on all devices, width), a store is cut into."""
        spans = self._spans(store.buckets)
        return collections.Counter((span.rows, span.width) for span in spans)

    def chunks(self, params: Params, store: Tokens, bar: Bar) -> Iterator[Chunk]:
        """The vectors of a whole store, in chunks of bounded size.

        Args:
          params: as `place` returns them: on every device, so that no batch copies them.
          store: what to encode.
          bar: a unit a text.
        """
        waiting: collections.deque[tuple[_Batch, jax.Array]] = collections.deque()
        collected = _Collector(store, self.chunk_floats)
        with bar:
            for batch in self._batches(store):
                vectors = self.run(params, batch.ids, batch.lengths)
                vectors.copy_to_host_async()
                waiting.append((batch, vectors))
                if len(waiting) >= _IN_FLIGHT:
                    yield from collected.add(*waiting.popleft(), bar)
            while waiting:
                yield from collected.add(*waiting.popleft(), bar)
            yield from collected.rest()

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
        """What each batch covers. What does not fill a last batch of its width goes into the
        next wider ones where that costs fewer tokens of padding.
        """
        start = 0
        for bucket, wider in itertools.zip_longest(buckets, buckets[1:]):
            left = bucket.start + bucket.count - start
            rows = self._rows(bucket.width, None if wider else left)
            whole = left - left % rows
            for at in range(start, start + whole, rows):
                yield _Span(at, rows, bucket.width, rows)
            start, left = start + whole, left - whole
            here = (rows - left) * bucket.width
            if left and not (wider and left * (wider.width - bucket.width) < here):
                yield _Span(start, left, bucket.width, rows)
                start += left

    def _rows(self, width: int, most: int | None) -> int:
        """Rows of a batch on all devices, as the budget allows; no more than `most` fill."""
        budget = self.batch_tokens // width
        rows = budget - budget % _ROW_MULTIPLE if budget > _ROW_MULTIPLE else max(1, budget)
        if most is not None:
            rows = min(rows, _round_up(-(-most // len(self._devices)), _ROW_MULTIPLE))
        return max(1, rows) * len(self._devices)


def _rows(buckets: Sequence[Bucket], matrices: Sequence[np.ndarray], span: _Span) -> np.ndarray:
    """The token ids of a span, [rows, width]: a slice of a bucket, if it lies in one."""
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
    """Gathers the batches' vectors into chunks."""

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
                "the encoder made vectors with NaN or infinity in them, of finite parameters:"
                " do the tokenizer's ids go beyond its embeddings, do its positions end before"
                " `passage_max_len`, or is it the encoder's own code?"
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
    """Tokens a batch a device that keep its kind busy."""
    return 1024 if device.platform == "cpu" else 65536


def _default_chunk_floats(device: jax.Device) -> int:
    """128 MiB on CPU. 512 MiB where encoding is fast, since each chunk costs a merge."""
    return 1 << (25 if device.platform == "cpu" else 27)


def matrix(chunks: Iterator[Chunk], count: int) -> np.ndarray:
    """All vectors of a store that fits in memory (queries), in document order."""
    parts = list(chunks)
    vectors = np.empty((count, parts[0].vectors.shape[1]), np.float32)
    for part in parts:
        vectors[part.rows] = part.vectors
    return vectors


def place(params: Params, devices: Sequence[jax.Device]) -> Params:
    """Copies parameters from host memory to every device, once, as Tower wants them."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("device",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(params, everywhere)


def _spread(encode: Encode, devices: tuple[jax.Device, ...]) -> Any:
    def run(params: Params, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        mask = jnp.arange(ids.shape[1])[None, :] < lengths[:, None].astype(jnp.int32)
        # By itself JAX computes float32 products in TF32 on GPUs, in bfloat16 on TPUs.
        with jax.default_matmul_precision("float32"):
            return encode(params, ids.astype(jnp.int32), mask).astype(jnp.float32)

    return jax.pmap(run, in_axes=(None, 0, 0), devices=devices)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
