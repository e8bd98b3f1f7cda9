"""Reads passages and queries, one line at a time, in the common formats.

A source is a file, or a folder of shards, which are read in the order of their names.
`.jsonl` and `.json` files have one JSON object per line (BEIR, Asyncval, Tevatron, Pyserini).
`.tsv` and `.txt` files have tab-separated columns (MS MARCO, DPR). All may end in `.gz`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import string
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from jaxval.errors import DataError, UserError
from jaxval.records import DatasetFiles, Progress, Text

ID_KEYS = ("_id", "text_id", "docid", "doc_id", "query_id", "id")
TEXT_KEYS = ("text", "query", "contents", "passage")
_COLUMNS = {2: ("id", "text"), 3: ("id", "title", "text"), 4: ("id", "url", "title", "text")}
_JSON, _TSV = ("jsonl", "json"), ("tsv", "txt")
_ENDINGS = ", ".join(f".{ending}" for ending in _JSON + _TSV)
# JSON can express half a surrogate pair, which tokenizers reject.
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_BLOCK = 1 << 20
_GZIP = b"\x1f\x8b"


def read_texts(source: Path) -> Iterator[Text]:
    """Yields the texts of a file or of a folder of shards, in order.

    Only one text is in memory at a time. Blanks around an id are removed, as in qrels. An id
    may occur more than once; see `duplicate_id`.

    Raises:
      DataError: A line or a file cannot be used, or there is no text.
    """
    return (text for _, _, text in _located(source))


def read_corpus(files: DatasetFiles, progress: Progress) -> Iterator[Text]:
    """Yields the passages of a validation set, and shows the progress."""
    with progress(f"{files.name}: reading passages", None) as bar:
        for text in read_texts(files.corpus):
            bar.update(1)
            yield text


def find_lines(source: Path, id: str) -> list[str]:
    """Returns the lines of the texts with this id, each as `path:line`."""
    return [f"{path}:{number}" for path, number, text in _located(source) if text.id == id]


def duplicate_id(id: str, lines: Sequence[str]) -> DataError:
    """Returns the error for an id that occurs more than once, on the lines of `find_lines`."""
    return DataError(
        f"id {id!r} occurs {len(lines)} times ({', '.join(lines[:3])}):"
        " ids must be unique, remove or rename one"
    )


def render(text: Text, template: str, prefix: str) -> str | tuple[int, ...]:
    """Returns what is tokenized: the prefix, then title and text, joined by the template.

    Blanks around the joined text are removed; those of the prefix (`passage: `) are kept.
    Token ids are returned as they are.

    Args:
      text: The text.
      template: A template with the field `{text}` and perhaps `{title}`.
      prefix: The prefix; may be empty.

    Raises:
      DataError: The text is token ids, and there is a prefix.
    """
    if isinstance(text.text, str):
        return prefix + template.format(title=text.title, text=text.text).strip()
    if prefix:
        raise DataError(
            f"text {text.id!r} is token ids, so the prefix {prefix!r} cannot be put before it:"
            " tokenize the file with the prefix and set an empty prefix, or give strings"
        )
    return text.text


def check_template(template: str) -> None:
    """Raises UserError unless the fields are `{text}`, or `{text}` and `{title}`."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _template_error(template, str(error)) from error
    fields = {part[1:] for part in parts if part[1] is not None}
    title, text = ("title", "", None), ("text", "", None)
    if not fields <= {title, text}:
        raise _template_error(template, "it has a field other than {title} and {text}")
    if text not in fields:
        raise _template_error(template, "it has no field {text}")


def digest(source: Path) -> str:
    """Returns the SHA-256, in hex, of the bytes of a file, or of a folder's shards.

    The names of files count only for the order of shards: a copy elsewhere has the same
    digest.

    Raises:
      DataError: A file cannot be read.
    """
    whole = hashlib.sha256()
    for path in _shards(source):
        whole.update(_file_digest(path))
    return whole.hexdigest()


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number, line) of a UTF-8 file, plain or .gz, without blank lines.

    Numbers start from 1. A byte order mark and the line ends (LF or CRLF) are removed.

    Raises:
      DataError: The file cannot be opened, unpacked or decoded.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line and not line.isspace():
                    yield number, line
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
        is_gzip = number == 1 and error.object.startswith(_GZIP)
        remedy = "it is gzip, name it .gz" if is_gzip else "save the file as UTF-8"
        raise DataError(f"{path}:{number}: {problem}: {remedy}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"cut short or not gzip ({error})"
        remedy = "copy or compress it again, or remove .gz from its name"
        raise DataError(f"{path}:{number + 1}: {problem}: {remedy}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def fields(line: str, counts: Container[int]) -> list[str]:
    """Returns the columns of a line of qrels or of a run, without blanks around them.

    Args:
      line: The line.
      counts: Numbers of columns that the format allows. If tabs separate one of these
        numbers, columns are separated by tabs, and ids may contain blanks; otherwise columns
        are separated by blanks.
    """
    columns = [column.strip() for column in line.split("\t")]
    return columns if len(columns) in counts else line.split()


def _located(source: Path) -> Iterator[tuple[Path, int, Text]]:
    """Yields (file, line number, text)."""
    empty = True
    for path in _shards(source):
        parse = _parser(path)
        for number, line in lines(path):
            try:
                text = parse(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from error
            if text is not None:
                empty = False
                yield path, number, text
    if empty:
        raise DataError(f"{source}: there is no text in it: check that the file is complete")


def _shards(source: Path) -> list[Path]:
    """Returns the file itself, or the folder's files with a known ending, by name."""
    try:
        if not source.is_dir():
            return [source]
        shards = sorted(path for path in source.iterdir() if _is_shard(path))
    except OSError as error:
        raise _unreadable(source, error) from error
    if not shards:
        raise DataError(
            f"{source}: there is no file to read in it: add {_ENDINGS} files (or .gz)"
        )
    return shards


def _is_shard(path: Path) -> bool:
    known = _ending(path) in _JSON + _TSV and not path.name.startswith(".")
    return known and path.is_file()


def _ending(path: Path) -> str:
    """Returns the ending that names the format: `tsv` for `corpus.tsv.gz`."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def _open(path: Path) -> BinaryIO:
    gzipped = path.name.lower().endswith(".gz")
    return cast(BinaryIO, gzip.open(path)) if gzipped else path.open("rb", buffering=_BLOCK)


def _file_digest(path: Path) -> bytes:
    hashed = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                hashed.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return hashed.digest()


def _parser(path: Path) -> Callable[[str], Text | None]:
    """Returns a function that parses a line of the file; it returns None for a header."""
    ending = _ending(path)
    if ending in _JSON:
        return _json_text
    if ending in _TSV:
        return partial(_tsv_text, _columns(path))
    raise DataError(f"{path}: unknown ending: use one of {_ENDINGS}, plain or .gz")


def _json_text(line: str) -> Text:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("line 1 column", "column")
        raise ValueError(f"broken JSON ({reason}): write one object per line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{_shown(record)} is not a JSON object: write one object per line")
    return _text(record)


def _columns(path: Path) -> tuple[str, ...]:
    """Returns the names of the columns: the header, or by their number in the first line."""
    first = next((tuple(line.split("\t")) for _, line in lines(path)), ())
    if _is_header(first):
        return first
    return _COLUMNS.get(len(first), _COLUMNS[2])


def _is_header(cells: Sequence[str]) -> bool:
    return bool(cells) and cells[0] in ID_KEYS and any(key in cells for key in TEXT_KEYS)


def _tsv_text(columns: tuple[str, ...], line: str) -> Text | None:
    cells = tuple(line.split("\t"))
    if len(cells) != len(columns):
        raise ValueError(
            f"{len(cells)} tab-separated columns where {'<TAB>'.join(columns)} is expected:"
            " give each line as many columns as the first, without tabs in the text"
        )
    if cells == columns and _is_header(cells):
        return None
    return _text(dict(zip(columns, cells, strict=True)))


def _text(record: dict[str, Any]) -> Text:
    title = record.get("title")
    return Text(
        id=_id(record),
        text=_body(record),
        title="" if title is None else _string("title", title),
    )


def _id(record: dict[str, Any]) -> str:
    key = _key(record, ID_KEYS, "id")
    value = record[key]
    if type(value) is int:
        return str(value)
    id = _string(key, value).strip()
    if not id:
        raise ValueError(f"{key!r} is empty: give each text an id")
    return id


def _body(record: dict[str, Any]) -> str | tuple[int, ...]:
    key = _key(record, TEXT_KEYS, "text")
    value = record[key]
    if not isinstance(value, list):
        return _string(key, value, "a string or a list of token ids")
    if not all(type(item) is int and 0 <= item < 1 << 31 for item in value):
        raise ValueError(f"{key!r} is {_shown(value)}: write a string or a list of token ids")
    return tuple(value)


def _key(record: dict[str, Any], keys: Sequence[str], what: str) -> str:
    """Returns the first of the keys that the record has."""
    for key in keys:
        if key in record:
            return key
    names = ", ".join(keys)
    raise ValueError(f"no {what} among its keys {_shown(list(record))}: use one of {names}")


def _string(key: str, value: Any, wanted: str = "a string") -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {_shown(value)}: write {wanted}")
    if not value.isascii() and _HALF_PAIR.search(value):
        raise ValueError(f"{key!r} contains half a surrogate pair: replace it by \\ufffd")
    return value


def _shown(value: Any) -> str:
    """Returns the beginning of the value as JSON, on one line."""
    return json.dumps(value)[:60]


def _template_error(template: str, problem: str) -> UserError:
    remedy = "use {text} and optionally {title}, as in '{title} {text}'"
    return UserError(f"`passage_template={template!r}`: {problem}: {remedy}")


def _unreadable(path: Path, error: OSError) -> DataError:
    problem = error.strerror or str(error)
    return DataError(f"{path}: {problem}: check the path and its permissions")
