"""Token stores: tokenized texts on disk, sorted by length and padded, ready for batches.

A store is a directory, named by the digest of everything that decides its content:

    manifest.json     counts, widths, the integer type
    tokens-WIDTH.bin  [count, width], padded on the right: a batch is a contiguous slice
    lengths.bin       [texts] uint16, in the order of the buckets
    rows.bin          [texts] int64, the row in document order of each position
    ids.bin, ends.bin the bytes of all ids, and the end of each
    hashes.bin        [texts] uint64, hashes of the ids in document order

It is built in one pass over the texts and one over their tokens, which are never all in
memory. It is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxval.atomic import make_partial, publish_folder, sweep
from jaxval.canonical import canonical
from jaxval.corpus.readers import duplicate_id, render
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
      template: Joins title and text, e.g. `{title} {text}`.
      prefix: Text before the result, e.g. `passage: `.
      max_len: Maximum number of tokens, including special tokens.
    """

    template: str
    prefix: str
    max_len: int


@dataclass(frozen=True)
class Bucket:
    """Texts that are padded to the same width.

    Attributes:
      width: Number of tokens, including padding.
      start: Position of the first text in the store.
      count: Number of texts.
    """

    width: int
    start: int
    count: int


@dataclass(frozen=True)
class TokenStore:
    """Tokenized texts on disk. Arrays are memory-mapped when they are first used.

    A text's row is its place in document order; its position is its place in the store.

    Attributes:
      path: The store's directory.
      digest: Digest of the texts, the tokenizer and the recipe.
      count: Number of texts.
      tokens: Number of tokens, without padding.
      full: Number of texts that reach `max_len`, and so may be truncated.
      dtype: The dtype of the token ids.
      buckets: The buckets, from the narrowest to the widest.
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
        """Number of tokens, including padding."""
        return sum(bucket.width * bucket.count for bucket in self.buckets)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[count] uint16: number of tokens of the text at each position."""
        return np.memmap(self.path / "lengths.bin", np.uint16, "r")

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[count] int64: row of the text at each position."""
        return np.memmap(self.path / "rows.bin", np.int64, "r")

    def matrix(self, bucket: Bucket) -> np.ndarray:
        """Returns the token ids of a bucket, [bucket.count, bucket.width]."""
        path = self.path / f"tokens-{bucket.width}.bin"
        return np.memmap(path, self.dtype, "r", shape=(bucket.count, bucket.width))

    def ids(self, rows: np.ndarray) -> list[str]:
        """Returns the ids of the texts at these rows, [n] int64."""
        ends, data = self._id_bytes
        starts = np.where(rows > 0, ends[rows - 1], 0)
        return [
            bytes(data[start:end]).decode()
            for start, end in zip(starts, ends[rows], strict=True)
        ]

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """Returns the row of each id; ids that are not in the store are left out."""
        order, hashes = self._sorted_hashes
        wanted = _hashes(ids)
        indices = np.minimum(np.searchsorted(hashes, wanted), self.count - 1)
        return {
            id_: int(order[index])
            for id_, index, hash_ in zip(ids, indices, wanted, strict=True)
            if hashes[index] == hash_
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
    """Returns the name of a store.

    A new field of Recipe with a default leaves the names of existing stores unchanged.

    Args:
      origin: Digest of the texts.
      tokenizer: Converts them to token ids.
      recipe: How they are rendered.
    """
    content = [_VERSION, origin, tokenizer.digest, canonical(recipe)]
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
    """Opens the store of these texts in `directory`, and builds it first if it is missing.

    Args:
      directory: Contains any number of stores.
      texts: The texts. Read only if the store is built.
      origin: Digest of the texts.
      tokenizer: Converts them to token ids.
      recipe: How they are rendered.
      find_lines: Returns the lines of an id, for the message about a duplicate.
      bar: Returns a progress bar for building, which counts texts.

    Raises:
      DataError: There is no text, an id occurs twice, or the directory cannot be written.
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
    """Writes ragged.bin and the ids, in document order.

    Returns:
      The number of tokens of each text, [texts] int64, and the hashes of the ids, [texts]
      uint64.
    """
    lengths, hashes, end = [], [], 0
    with (
        (path / "ragged.bin").open("wb") as ragged,
        (path / "ids.bin").open("wb") as ids_file,
        (path / "ends.bin").open("wb") as ends_file,
    ):
        for block in _blocks(texts, _BLOCK):
            rendered = [render(text, recipe.template, recipe.prefix) for text in block]
            tokens = tokenizer.encode(rendered, recipe.max_len)
            ragged.write(np.fromiter(itertools.chain.from_iterable(tokens), dtype).data)
            lengths.append(np.array([len(row) for row in tokens], np.int64))
            hashes.append(_hashes([text.id for text in block]))
            end = _write_ids(ids_file, ends_file, [text.id.encode() for text in block], end)
            bar.update(len(block))
    if not lengths:
        raise DataError("there is no text to tokenize")
    return np.concatenate(lengths), np.concatenate(hashes)


def _write_ids(ids_file: BinaryIO, ends_file: BinaryIO, ids: Sequence[bytes], end: int) -> int:
    """Appends ids to ids.bin and ends.bin, and returns the new end of ids.bin, in bytes."""
    ends = end + np.cumsum([len(id_) for id_ in ids])
    ids_file.write(b"".join(ids))
    ends_file.write(ends.astype(np.int64).data)
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
    """Writes hashes.bin; raises DataError if an id occurs twice."""
    # Not with ndarray.tofile, which ignores a full disk.
    (path / "hashes.bin").write_bytes(hashes.data)
    order = np.argsort(hashes, kind="stable")
    duplicates = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if len(duplicates) == 0:
        return
    row = order[duplicates[0]]
    ends = np.fromfile(path / "ends.bin", np.int64)
    data = (path / "ids.bin").read_bytes()
    id_ = data[ends[row - 1] if row else 0 : ends[row]].decode()
    raise duplicate_id(id_, find_lines(id_))


def choose_widths(histogram: np.ndarray, max_len: int) -> list[int]:
    """Returns the fewest widths with which at most 5% of all tokens are padding.

    Widths are multiples of 8. If 16 widths are not enough, returns the best 16. They are
    found by dynamic programming: `best[j]` is the lowest cost of covering all lengths up to
    the j-th candidate width with the current number of widths.

    Args:
      histogram: [longest + 1], the number of texts of each length.
      max_len: No width exceeds it, because an encoder may have no position beyond it.
    """
    steps = max(1, -(-(len(histogram) - 1) // _WIDTH_STEP))
    counts = np.zeros(steps * _WIDTH_STEP + 1)
    counts[: len(histogram)] = histogram
    upto = np.cumsum(counts)[::_WIDTH_STEP]  # number of texts no longer than each candidate
    upto[0] = 0  # a text without tokens still takes a row
    most = min(_MAX_WIDTHS, int(np.count_nonzero(np.diff(upto))))  # no width is empty
    grid = np.minimum(np.arange(steps + 1) * _WIDTH_STEP, max_len)
    cost = (upto[None, :] - upto[:, None]) * grid[None, :]  # lengths (i, j] with width j
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
    """Copies ragged.bin into a padded matrix for each width.

    Returns:
      The number of rows of each matrix.
    """
    bucket_of = np.searchsorted(widths, lengths)
    order = np.argsort(bucket_of, kind="stable")
    (path / "rows.bin").write_bytes(order.astype(np.int64).data)
    (path / "lengths.bin").write_bytes(lengths[order].astype(np.uint16).data)
    with contextlib.ExitStack() as stack:
        ragged = stack.enter_context((path / "ragged.bin").open("rb"))
        files = [
            stack.enter_context((path / f"tokens-{width}.bin").open("wb")) for width in widths
        ]
        for start in range(0, len(lengths), _BLOCK):
            block = lengths[start : start + _BLOCK]
            flat = np.fromfile(ragged, dtype, int(block.sum()))
            for index in np.unique(bucket_of[start : start + _BLOCK]):
                selected = bucket_of[start : start + _BLOCK] == index
                tokens = flat[np.repeat(selected, block)]
                files[index].write(_pad(tokens, block[selected], widths[index], pad).data)
    return [int(count) for count in np.bincount(bucket_of, minlength=len(widths))]


def _pad(flat: np.ndarray, lengths: np.ndarray, width: int, pad: int) -> np.ndarray:
    matrix = np.full((len(lengths), width), pad, flat.dtype)
    matrix[np.arange(width) < lengths[:, None]] = flat
    return matrix
