"""The token store: a collection tokenized once, on disk, in the order batches are cut.

A store is a directory named by the digest of all that went into it:

    manifest.json     counts, widths, the integer type
    tokens-WIDTH.bin  [count, width], padded on the right: a batch is a contiguous slice
    lengths.bin       [passages] uint16, in the order of the buckets
    rows.bin          [passages] int64, the row in document order of each position
    ids.bin, ends.bin the ids' bytes, and where each ends
    hashes.bin        [passages] uint64, of the ids in document order

It is built by one pass over the texts and one over their tokens, never whole in memory,
under another name, and renamed when whole.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxval.atomic import make_partial, publish_folder, sweep
from jaxval.corpus.readers import render
from jaxval.corpus.tokenizer import Tokenizer
from jaxval.errors import DataError
from jaxval.records import Bar, Text

_VERSION = 1
_BLOCK = 8192
_WIDTH_STEP = 8
_MAX_WIDTHS = 16
_WASTE = 0.05


@dataclass(frozen=True)
class Recipe:
    """How a text becomes tokens.

    Attributes:
      template: of title and text, e.g. `{title} {text}`.
      prefix: put before the result, e.g. `passage: `.
      max_len: tokens at most, special tokens included.
    """

    template: str
    prefix: str
    max_len: int


@dataclass(frozen=True)
class Bucket:
    """The texts that are padded to one width: positions start to start + count."""

    width: int
    start: int
    count: int


@dataclass(frozen=True)
class TokenStore:
    """A tokenized collection on disk. Arrays are memory-mapped when first used.

    Attributes:
      path: its directory.
      digest: of the texts, the tokenizer and the recipe.
      count: texts in it.
      tokens: their tokens, padding not counted.
      full: how many texts reach max_len, and so may have been cut.
      dtype: of the token ids.
      buckets: from the narrowest to the widest.
    """

    path: Path
    digest: str
    count: int
    tokens: int
    full: int
    dtype: str
    buckets: tuple[Bucket, ...]

    @property
    def padded(self) -> int:
        """Tokens with their padding."""
        return sum(bucket.width * bucket.count for bucket in self.buckets)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[count] uint16, by position."""
        return np.memmap(self.path / "lengths.bin", np.uint16, "r")

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[count] int64: the row in document order of each position."""
        return np.memmap(self.path / "rows.bin", np.int64, "r")

    def matrix(self, bucket: Bucket) -> np.ndarray:
        """[bucket.count, bucket.width] token ids."""
        path = self.path / f"tokens-{bucket.width}.bin"
        return np.memmap(path, self.dtype, "r", shape=(bucket.count, bucket.width))

    def ids(self, rows: np.ndarray) -> list[str]:
        """The ids at these rows."""
        ends, data = self._id_bytes
        starts = np.where(rows > 0, ends[rows - 1], 0)
        return [
            bytes(data[start:end]).decode()
            for start, end in zip(starts, ends[rows], strict=True)
        ]

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """The row of each of these ids that is in the collection."""
        order, hashes = self._sorted_hashes
        wanted = _hashes(ids)
        at = np.minimum(np.searchsorted(hashes, wanted), self.count - 1)
        return {
            id_: int(order[place])
            for id_, place, hash_ in zip(ids, at, wanted, strict=True)
            if hashes[place] == hash_
        }

    @functools.cached_property
    def _id_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        ends = np.memmap(self.path / "ends.bin", np.int64, "r")
        return ends, np.memmap(self.path / "ids.bin", np.uint8, "r")

    @functools.cached_property
    def _sorted_hashes(self) -> tuple[np.ndarray, np.ndarray]:
        hashes = np.fromfile(self.path / "hashes.bin", np.uint64)
        order = np.argsort(hashes)
        return order, hashes[order]


def digest(origin: str, tokenizer: Tokenizer, recipe: Recipe) -> str:
    """The name of the store of these texts (`origin` is their digest)."""
    content = [_VERSION, origin, tokenizer.digest, asdict(recipe)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def open_or_build(
    directory: Path,
    texts: Iterable[Text],
    origin: str,
    tokenizer: Tokenizer,
    recipe: Recipe,
    *,
    find_lines: Callable[[str], list[str]],
    bar: Callable[[], Bar],
) -> TokenStore:
    """The store of these texts in `directory`, built unless it is there.

    Args:
      directory: holds any number of stores.
      texts: read only if the store is to be built.
      origin: a digest of the texts.
      tokenizer: makes the ids.
      recipe: how.
      find_lines: where an id stands, for the message about a duplicate.
      bar: shows the progress of building, a unit a text.

    Raises:
      DataError: there is no text, or an id stands twice.
    """
    name = digest(origin, tokenizer, recipe)
    sweep(directory.glob("*.partial"))
    final = directory / name
    if not (final / "manifest.json").exists():
        try:
            partial = make_partial(final)
        except OSError as error:
            raise DataError(f"`token_dir={directory}` cannot be written: {error}") from error
        try:
            _build(partial, texts, tokenizer, recipe, find_lines, bar())
            publish_folder(partial, final, taken=(final / "manifest.json").exists)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _open(final)


def _open(path: Path) -> TokenStore:
    manifest = json.loads((path / "manifest.json").read_text())
    counts = manifest.pop("counts")
    starts = itertools.accumulate(counts, initial=0)
    buckets = tuple(map(Bucket, manifest.pop("widths"), starts, counts))
    return TokenStore(path=path, digest=path.name, buckets=buckets, **manifest)


def _build(
    path: Path,
    texts: Iterable[Text],
    tokenizer: Tokenizer,
    recipe: Recipe,
    find_lines: Callable[[str], list[str]],
    bar: Bar,
) -> None:
    dtype = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
    with bar:
        lengths, hashes = _tokenize(path, texts, tokenizer, recipe, np.dtype(dtype), bar)
    _check_unique(hashes, path, find_lines)
    widths = choose_widths(np.bincount(lengths), recipe.max_len)
    counts = _scatter(path, lengths, widths, np.dtype(dtype), tokenizer.pad)
    (path / "ragged.bin").unlink()
    manifest = {
        "count": len(lengths),
        "tokens": int(lengths.sum()),
        "full": int((lengths >= recipe.max_len).sum()),
        "dtype": np.dtype(dtype).name,
        "widths": widths,
        "counts": counts,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))


def _tokenize(
    path: Path,
    texts: Iterable[Text],
    tokenizer: Tokenizer,
    recipe: Recipe,
    dtype: np.dtype[Any],
    bar: Bar,
) -> tuple[np.ndarray, np.ndarray]:
    """Writes ragged.bin and the ids, in document order; returns lengths and id hashes."""
    lengths, hashes, end = [], [], 0
    with (path / "ragged.bin").open("wb") as ragged, _IdFiles(path) as ids:
        for block in _blocks(texts, _BLOCK):
            rendered = [render(text, recipe.template, recipe.prefix) for text in block]
            tokens = tokenizer.encode(rendered, recipe.max_len)
            ragged.write(np.fromiter(itertools.chain.from_iterable(tokens), dtype).data)
            lengths.append(np.array([len(row) for row in tokens], np.int64))
            hashes.append(_hashes([text.id for text in block]))
            end = ids.write([text.id.encode() for text in block], end)
            bar.update(len(block))
    if not lengths:
        raise DataError("no text in it")
    return np.concatenate(lengths), np.concatenate(hashes)


class _IdFiles:
    """ids.bin, ends.bin and hashes.bin while they are written."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> _IdFiles:
        self._ids: BinaryIO = (self._path / "ids.bin").open("wb")
        self._ends: BinaryIO = (self._path / "ends.bin").open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._ends.close()

    def write(self, ids: Sequence[bytes], end: int) -> int:
        """Appends a block; returns where the ids end now."""
        ends = end + np.cumsum([len(id_) for id_ in ids])
        self._ids.write(b"".join(ids))
        self._ends.write(ends.astype(np.int64).data)
        return int(ends[-1])


def _blocks(texts: Iterable[Text], size: int) -> Iterator[list[Text]]:
    iterator = iter(texts)
    while block := list(itertools.islice(iterator, size)):
        yield block


def _hashes(ids: Sequence[str]) -> np.ndarray:
    digests = (hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids)
    return np.frombuffer(b"".join(digests), np.uint64)


def _check_unique(
    hashes: np.ndarray, path: Path, find_lines: Callable[[str], list[str]]
) -> None:
    # Never by ndarray.tofile: it says nothing of a full disk.
    (path / "hashes.bin").write_bytes(hashes.data)
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if len(same) == 0:
        return
    first = order[same[0]]
    ends = np.fromfile(path / "ends.bin", np.int64)
    data = (path / "ids.bin").read_bytes()
    id_ = data[ends[first - 1] if first else 0 : ends[first]].decode()
    found = find_lines(id_)
    raise DataError(
        f"id {id_!r} stands {len(found)} times ({', '.join(found[:3])}):"
        " ids must be unique, remove or rename one"
    )


def choose_widths(histogram: np.ndarray, max_len: int) -> list[int]:
    """The fewest widths, multiples of 8, that waste at most 5% on padding.

    Where no 16 widths are that good, the best 16. By dynamic programming over the widths:
    the cheapest way to cover all lengths up to a width with so many widths.

    Args:
      histogram: [longest + 1], how many texts have each length.
      max_len: no width exceeds it, as encoders may have no position beyond.
    """
    steps = max(1, -(-(len(histogram) - 1) // _WIDTH_STEP))
    counts = np.zeros(steps * _WIDTH_STEP + 1)
    counts[: len(histogram)] = histogram
    upto = np.cumsum(counts)[::_WIDTH_STEP]  # texts no longer than each candidate
    upto[0] = 0  # a text without tokens still takes a row
    most = min(_MAX_WIDTHS, int(np.count_nonzero(np.diff(upto))))  # so that no width is empty
    grid = np.minimum(np.arange(steps + 1) * _WIDTH_STEP, max_len)
    cost = (upto[None, :] - upto[:, None]) * grid[None, :]  # of covering (i, j] by width j
    cost[np.tril_indices(steps + 1)] = np.inf
    tokens = float(np.arange(len(counts)) @ counts)
    best, choices = cost[0], [np.zeros(steps + 1, int)]
    while best[-1] > tokens / (1 - _WASTE) and len(choices) < most:
        paths = best[:, None] + cost
        choices.append(paths.argmin(0))
        best = paths.min(0)
    return [min(width, max_len) for width in _backtrack(choices, steps)]


def _backtrack(choices: list[np.ndarray], last: int) -> list[int]:
    widths = []
    for choice in reversed(choices):
        widths.append(last * _WIDTH_STEP)
        last = int(choice[last])
    return widths[::-1]


def _scatter(
    path: Path, lengths: np.ndarray, widths: list[int], dtype: np.dtype[Any], pad: int
) -> list[int]:
    """Copies the ragged tokens into one padded matrix a width; returns their heights."""
    bucket_of = np.searchsorted(widths, lengths)
    order = np.argsort(bucket_of, kind="stable")
    (path / "rows.bin").write_bytes(order.astype(np.int64).data)
    (path / "lengths.bin").write_bytes(lengths[order].astype(np.uint16).data)
    with (path / "ragged.bin").open("rb") as ragged:
        files = [(path / f"tokens-{width}.bin").open("wb") for width in widths]
        for start in range(0, len(lengths), _BLOCK):
            block = lengths[start : start + _BLOCK]
            flat = np.fromfile(ragged, dtype, int(block.sum()))
            for index in np.unique(bucket_of[start : start + _BLOCK]):
                chosen = bucket_of[start : start + _BLOCK] == index
                taken = flat[np.repeat(chosen, block)]
                files[index].write(_pad(taken, block[chosen], widths[index], pad).data)
        for file in files:
            file.close()
    return [int(count) for count in np.bincount(bucket_of, minlength=len(widths))]


def _pad(flat: np.ndarray, lengths: np.ndarray, width: int, pad: int) -> np.ndarray:
    matrix = np.full((len(lengths), width), pad, flat.dtype)
    matrix[np.arange(width) < lengths[:, None]] = flat
    return matrix
