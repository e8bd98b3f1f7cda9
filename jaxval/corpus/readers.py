"""Reads passages and queries, a line at a time, from the formats the field writes.

A source is one file, or a folder of shards that are read in the order of their names.
`.jsonl` and `.json` hold a JSON object a line (BEIR, Asyncval, Tevatron, Pyserini);
`.tsv` and `.txt` hold tab-separated columns (MS MARCO, DPR). Each may end in `.gz`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import string
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from jaxval.errors import DataError, UserError
from jaxval.records import Bar, Text

ID_KEYS = ("_id", "text_id", "docid", "doc_id", "query_id", "id")
TEXT_KEYS = ("text", "query", "contents", "passage")
_COLUMNS = {2: ("id", "text"), 3: ("id", "title", "text"), 4: ("id", "url", "title", "text")}
_JSON, _TSV = ("jsonl", "json"), ("tsv", "txt")
_ENDINGS = ", ".join(f".{ending}" for ending in _JSON + _TSV)
# JSON can spell half a surrogate pair, which no tokenizer takes.
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_BLOCK = 1 << 20
_GZIP = b"\x1f\x8b"


def read_texts(source: Path) -> Iterator[Text]:
    """Yields the texts of a file or a folder of shards, in order, never all in memory.

    Blanks around an id go, as they do in qrels. Ids may repeat: who needs them unique
    finds out and then asks `find_lines`.

    Raises:
      DataError: a line or a file cannot be used, or there is no text at all.
    """
    return (text for _, _, text in _located(source))


def counted(texts: Iterable[Text], bar: Bar) -> Iterator[Text]:
    """The same texts, a unit of the bar each."""
    with bar:
        for text in texts:
            bar.update(1)
            yield text


def find_lines(source: Path, id: str) -> list[str]:
    """Where texts of this id stand, each as `path:line`."""
    return [f"{path}:{number}" for path, number, text in _located(source) if text.id == id]


def render(text: Text, template: str, prefix: str) -> str | tuple[int, ...]:
    """What the encoder reads: prefix, then title and text as the template joins them.

    Blanks around the joined text go; those of the prefix (`passage: `) stay. Token ids
    pass as they are.

    Raises:
      DataError: a prefix is asked for and the text is token ids.
    """
    if isinstance(text.text, str):
        return prefix + template.format(title=text.title, text=text.text).strip()
    if prefix:
        raise DataError(
            f"text {text.id!r} is token ids, so the prefix {prefix!r} cannot be put before it: "
            "tokenize the file with the prefix in it and leave the flag empty, or give strings"
        )
    return text.text


def check_template(template: str) -> None:
    """Raises UserError unless `{text}`, and at most `{title}`, are the template's fields."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _template_error(template, str(error)) from error
    fields = {part[1:] for part in parts if part[1] is not None}
    title, text = ("title", "", None), ("text", "", None)
    if not fields <= {title, text}:
        raise _template_error(template, "it has another field than plain {title} and {text}")
    if text not in fields:
        raise _template_error(template, "no {text} in it")


def digest(source: Path) -> str:
    """SHA-256, in hex, of the bytes of the file or of the shards and where they divide.

    Names do not count beyond the order they give: a copy elsewhere has the same digest.

    Raises:
      DataError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for path in _shards(source):
        whole.update(_file_digest(path))
    return whole.hexdigest()


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line) of a UTF-8 file, plain or .gz; no blank lines.

    A byte order mark and the line ends, `\\n` or `\\r\\n`, are taken off.

    Raises:
      DataError: the file cannot be opened, unpacked or decoded.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line and not line.isspace():
                    yield number, line
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
        zipped = number == 1 and error.object.startswith(_GZIP)
        remedy = "it is gzip, name it .gz" if zipped else "save the file as UTF-8"
        raise DataError(f"{path}:{number}: {what}: {remedy}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"cut short or not gzip ({error})"
        remedy = "copy or compress it again, or drop .gz from its name"
        raise DataError(f"{path}:{number + 1}: {what}: {remedy}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def fields(line: str, counts: Container[int]) -> list[str]:
    """The columns of a line of qrels or of a run, without the blanks around them.

    Tabs divide it if that gives one of these counts, so that ids may hold blanks within;
    else blanks do.
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
        raise DataError(f"{source}: no text in it: check that it was written whole")


def _shards(source: Path) -> list[Path]:
    """The file itself, or the folder's files of a known ending, by name."""
    try:
        if not source.is_dir():
            return [source]
        shards = sorted(path for path in source.iterdir() if _is_shard(path))
    except OSError as error:
        raise _unreadable(source, error) from error
    if not shards:
        raise DataError(f"{source}: nothing to read in it: put {_ENDINGS} files there (or .gz)")
    return shards


def _is_shard(path: Path) -> bool:
    known = _ending(path) in _JSON + _TSV and not path.name.startswith(".")
    return known and path.is_file()


def _ending(path: Path) -> str:
    """The ending that tells the format: `tsv` for `corpus.tsv.gz`."""
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
    """What turns a line of this file into a text (None: the line is a header)."""
    ending = _ending(path)
    if ending in _JSON:
        return _json_text
    if ending in _TSV:
        return partial(_tsv_text, _columns(path))
    raise DataError(f"{path}: unknown ending: name it one of {_ENDINGS}, each plain or .gz")


def _json_text(line: str) -> Text:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("line 1 column", "column")
        raise ValueError(f"broken JSON ({reason}): write one whole object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{_shown(record)} is not a JSON object: write one object a line")
    return _text(record)


def _columns(path: Path) -> tuple[str, ...]:
    """The columns' names: the header's, else by their number in the first line."""
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
            f"{len(cells)} tab-separated columns where {'<TAB>'.join(columns)} is expected: "
            "give each line as many columns as the first, with no tab inside the text"
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
    """The first of the keys that the record has."""
    for key in keys:
        if key in record:
            return key
    present = _shown(list(record))
    raise ValueError(f"no {what} among its keys {present}: name it one of {', '.join(keys)}")


def _string(key: str, value: Any, wanted: str = "a string") -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {_shown(value)}: write {wanted}")
    if not value.isascii() and _HALF_PAIR.search(value):
        raise ValueError(f"{key!r} holds half a surrogate pair: replace it by \\ufffd")
    return value


def _shown(value: Any) -> str:
    """The value as JSON, on one line and short."""
    return json.dumps(value)[:60]


def _template_error(template: str, what: str) -> UserError:
    remedy = "use {text} and, if wanted, {title}, as in '{title} {text}'"
    return UserError(f"`passage_template={template!r}`: {what}: {remedy}")


def _unreadable(path: Path, error: OSError) -> DataError:
    what = error.strerror or str(error)
    return DataError(f"{path}: {what}: check the path and who may read it")
