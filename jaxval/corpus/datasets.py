"""Validation sets: the files that `dataset` names, and the judged queries in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxval.corpus.qrels import read_qrels
from jaxval.corpus.readers import find_lines, read_texts
from jaxval.errors import DataError, UserError
from jaxval.records import DatasetFiles, Qrels, Text

_SPELLING = "NAME:FOLDER or NAME:corpus=PATH,queries=PATH,qrels=PATH"
_ROLES = ("corpus", "queries", "qrels")
_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9._-]+")
# A comma divides only before a role, so that paths may hold commas.
_COMMA = re.compile(rf",(?=(?:{'|'.join(_ROLES)})=)")


def _plain_and_gz(*names: str) -> tuple[str, ...]:
    return tuple(name + end for name in names for end in ("", ".gz"))


_OFFERS = {
    "corpus": (
        *_plain_and_gz("corpus.jsonl", "corpus.json", "corpus.tsv", "collection.tsv"),
        "corpus",
    ),
    "queries": _plain_and_gz("queries.jsonl", "queries.json", "queries.tsv"),
    "qrels": _plain_and_gz("qrels.tsv", "qrels.txt", "qrels.trec"),
}
"""The file names of each role in a folder. The first that exists is taken."""


@dataclass(frozen=True)
class QuerySet:
    """The judged queries of a validation set, with their judgments.

    Attributes:
      name: The name of the validation set.
      texts: The judged queries, in file order. A grade of 0 or below is a judgment, too.
      qrels: The judgments of exactly these queries.
      unjudged: Number of queries that are left out because they have no judgment.
      unknown_queries: Number of queries in the qrels that have no text.
      digest: SHA-256 of the content of texts and qrels, in hex. The file format and the
        compression do not change it.
    """

    name: str
    texts: tuple[Text, ...]
    qrels: Qrels
    unjudged: int
    unknown_queries: int
    digest: str

    @property
    def judged(self) -> frozenset[str]:
        """Ids of the passages that are judged for any of the queries."""
        return frozenset(passage for grades in self.qrels.values() for passage in grades)


def parse_all(specs: Sequence[str]) -> tuple[DatasetFiles, ...]:
    """Parses every value of the repeated setting `dataset`, in order. See `parse`.

    Raises:
      UserError: There is no value, a name occurs twice, or a value cannot be used.
    """
    if not specs:
        raise UserError(f"`dataset` is not set: add `dataset={_SPELLING}`")
    files = tuple(parse(spec) for spec in specs)
    names = [dataset.name for dataset in files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"`dataset={name}:…`: the name is given twice: rename one of the sets"
            )
    return files


def parse(spec: str) -> DatasetFiles:
    """Returns the files that one value of `dataset` names.

    Args:
      spec: `NAME:FOLDER`, `NAME:corpus=PATH,queries=PATH,qrels=PATH`, or a folder with some
        of its files replaced, as in `NAME:FOLDER,qrels=FOLDER/qrels/dev.tsv`.

    Raises:
      UserError: The spelling is wrong, or a file is missing.
    """
    name, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise UserError(f"`dataset={spec}`: no path: write {_SPELLING}")
    if not _NAME.fullmatch(name):
        problem = f"the name {name!r} cannot name a folder"
        raise UserError(f"`dataset={spec}`: {problem}: use letters, digits, '.', '_' and '-'")
    try:
        folder, named = _split(spec, rest)
        paths = {role: named.get(role) or _offered(spec, folder, role) for role in _ROLES}
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
        raise UserError(f"`dataset={spec}`: {problem}: check its permissions") from error
    return DatasetFiles(name, **paths)


def load_queries(files: DatasetFiles) -> QuerySet:
    """Reads queries and qrels, and keeps the judged queries.

    Raises:
      DataError: A file cannot be used, a query id occurs twice, or no query is judged.
    """
    texts = _unique(read_texts(files.queries), files.queries)
    qrels = read_qrels(files.qrels)
    judged = tuple(text for text in texts.values() if text.id in qrels)
    if not judged:
        raise _nothing_judged(files, next(iter(texts)), next(iter(qrels)))
    kept = {text.id: qrels[text.id] for text in judged}
    return QuerySet(
        name=files.name,
        texts=judged,
        qrels=kept,
        unjudged=len(texts) - len(judged),
        unknown_queries=len(qrels) - len(judged),
        digest=_digest(judged, kept),
    )


def none_judged(files: DatasetFiles, where: object) -> DataError:
    """Returns the error for a set of which no judged document exists.

    Args:
      files: The validation set.
      where: The searched files, for the message.
    """
    return DataError(
        f"`dataset={files.name}`: none of the judged documents is in {where}:"
        f" do {files.qrels} and the corpus use the same ids?"
    )


def _split(spec: str, rest: str) -> tuple[Path | None, dict[str, Path]]:
    """Returns the folder, if one is named, and the files named by role."""
    folder: Path | None = None
    named: dict[str, Path] = {}
    for part in _COMMA.split(rest):
        role, equals, value = part.partition("=")
        if not equals or role not in _ROLES:
            folder = _existing(spec, part)
            continue
        if role in named:
            raise UserError(f"`dataset={spec}`: {role}= is given twice: keep one of them")
        named[role] = _existing(spec, value)
    if folder and not folder.is_dir():
        raise UserError(f"`dataset={spec}`: {folder} is not a folder: write {_SPELLING}")
    return folder, named


def _existing(spec: str, value: str) -> Path:
    path = Path(os.path.expanduser(value))  # noqa: PTH111 (Path's raises on an unknown user)
    if not value or not path.exists():
        remedy = f"check the path; the form is {_SPELLING}"
        if unknown := re.search(r"(?:^|,)(\w+)=", value):
            remedy = f"{unknown[1]}= is none of {', '.join(f'{role}=' for role in _ROLES)}"
        raise UserError(f"`dataset={spec}`: there is no {value or 'path'!r}: {remedy}")
    return path


def _offered(spec: str, folder: Path | None, role: str) -> Path:
    """Returns the folder's file for a role."""
    if folder is None:
        raise UserError(f"`dataset={spec}`: no {role}: add {role}=PATH, or name a folder")
    split = _judged_split(spec, folder) if role == "qrels" else None
    path = split or _first(folder, _OFFERS[role])
    if path is None:
        names = ", ".join((("qrels/*",) if role == "qrels" else ()) + _OFFERS[role])
        remedy = f"add one of these files, or add ,{role}=PATH to the setting"
        raise UserError(f"`dataset={spec}`: no {role} in {folder} (tried {names}): {remedy}")
    return path


def _judged_split(spec: str, folder: Path) -> Path | None:
    """Returns the qrels of the test split, or the only file in BEIR's folder `qrels`."""
    qrels = folder / "qrels"
    if test := _first(qrels, _plain_and_gz("test.tsv")):
        return test
    paths = sorted(qrels.iterdir()) if qrels.is_dir() else []
    splits = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    if len(splits) > 1:
        names = ", ".join(path.name for path in splits)
        remedy = f"choose one by adding ,qrels={splits[0]}"
        raise UserError(f"`dataset={spec}`: several qrels in {qrels} ({names}): {remedy}")
    return splits[0] if splits else None


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _unique(texts: Iterable[Text], source: Path) -> dict[str, Text]:
    unique: dict[str, Text] = {}
    for text in texts:
        if text.id in unique:
            first, second, *_ = find_lines(source, text.id)
            raise DataError(f"{second}: query {text.id!r} is also at {first}: keep one of them")
        unique[text.id] = text
    return unique


def _nothing_judged(files: DatasetFiles, query: str, judged: str) -> DataError:
    return DataError(
        f"{files.qrels}: queries without qrels: none of its queries ({judged!r}, …) is in "
        f"{files.queries} ({query!r}, …): name the qrels of these queries, as in "
        f"`dataset={files.name}:corpus={files.corpus},queries={files.queries},qrels=PATH`"
    )


def _digest(texts: Sequence[Text], qrels: Qrels) -> str:
    content = [[(text.id, text.title, text.text) for text in texts], qrels]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
