"""Validation sets: what `dataset` names, and the queries that can be judged."""

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
"""The names that are looked for in a folder, the first that exists is taken."""


@dataclass(frozen=True)
class QuerySet:
    """The queries of a validation set that have judgements, and these.

    Attributes:
      name: the validation set's name.
      texts: the judged queries, in file order. A grade of 0 or below is a judgement.
      qrels: the judgements of exactly these queries.
      unjudged: how many queries were left out for want of a judgement.
      unknown_queries: how many queries of the qrels have no text.
      digest: SHA-256 of texts and qrels, in hex. It is that of what they say: another
        format or compression of the same does not change it.
    """

    name: str
    texts: tuple[Text, ...]
    qrels: Qrels
    unjudged: int
    unknown_queries: int
    digest: str

    @property
    def judged(self) -> frozenset[str]:
        """The ids of the passages that are judged for any of the queries."""
        return frozenset(passage for grades in self.qrels.values() for passage in grades)


def parse_all(specs: Sequence[str]) -> tuple[DatasetFiles, ...]:
    """What the repeated flag `dataset` names, in order. See `parse`.

    Raises:
      UserError: there is none, a name stands twice, or one cannot be used.
    """
    if not specs:
        raise UserError(f"`dataset`: none is given: add `dataset={_SPELLING}`")
    files = tuple(parse(spec) for spec in specs)
    names = [each.name for each in files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"`dataset={name}:…`: the name stands twice: rename one of them")
    return files


def parse(spec: str) -> DatasetFiles:
    """Where the validation set of one `dataset` lies.

    `NAME:FOLDER`, `NAME:corpus=PATH,queries=PATH,qrels=PATH`, or a folder with some of
    its files named otherwise, `NAME:FOLDER,qrels=FOLDER/qrels/dev.tsv`.

    Raises:
      UserError: the spelling is wrong or something is missing.
    """
    name, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise UserError(f"`dataset={spec}`: no path: write {_SPELLING}")
    if not _NAME.fullmatch(name):
        what = f"the name {name!r} names folders and tags"
        raise UserError(f"`dataset={spec}`: {what}: use letters, digits, '.', '_' and '-'")
    try:
        folder, named = _split(spec, rest)
        paths = {role: named.get(role) or _offered(spec, folder, role) for role in _ROLES}
    except OSError as error:
        what = f"{error.filename}: {error.strerror}"
        raise UserError(f"`dataset={spec}`: {what}: check who may read it") from error
    return DatasetFiles(name, **paths)


def load_queries(files: DatasetFiles) -> QuerySet:
    """Reads queries and qrels, and keeps the queries that have judgements.

    Raises:
      DataError: a file cannot be used, a query id stands twice, or no query is judged.
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
    """What is wrong with a set whose judged documents all are not there."""
    return DataError(
        f"`dataset={files.name}`: none of the judged documents is in {where}:"
        f" do {files.qrels} and the corpus use the same ids?"
    )


def _split(spec: str, rest: str) -> tuple[Path | None, dict[str, Path]]:
    """The folder, if there is one, and the files that are named, role -> path."""
    folder: Path | None = None
    named: dict[str, Path] = {}
    for part in _COMMA.split(rest):
        role, equals, value = part.partition("=")
        if not equals or role not in _ROLES:
            folder = _existing(spec, part)
            continue
        if role in named:
            raise UserError(f"`dataset={spec}`: {role}= stands twice: keep one of them")
        named[role] = _existing(spec, value)
    if folder and not folder.is_dir():
        raise UserError(f"`dataset={spec}`: {folder} is not a folder: write {_SPELLING}")
    return folder, named


def _existing(spec: str, value: str) -> Path:
    path = Path(os.path.expanduser(value))  # noqa: PTH111 (Path's raises on an unknown user)
    if not value or not path.exists():
        remedy = f"check the path, the spelling is {_SPELLING}"
        if unknown := re.search(r"(?:^|,)(\w+)=", value):
            remedy = f"{unknown[1]}= is none of {', '.join(f'{role}=' for role in _ROLES)}"
        raise UserError(f"`dataset={spec}`: there is no {value or 'path'!r}: {remedy}")
    return path


def _offered(spec: str, folder: Path | None, role: str) -> Path:
    """The file that the folder holds for the role."""
    if folder is None:
        raise UserError(f"`dataset={spec}`: no {role}: add {role}=PATH, or name a folder")
    found = _judged_split(spec, folder) if role == "qrels" else None
    found = found or _first(folder, _OFFERS[role])
    if found is None:
        looked = ", ".join((("qrels/*",) if role == "qrels" else ()) + _OFFERS[role])
        remedy = f"add one, or ,{role}=PATH to the flag"
        raise UserError(
            f"`dataset={spec}`: no {role} in {folder} (looked for {looked}): {remedy}"
        )
    return found


def _judged_split(spec: str, folder: Path) -> Path | None:
    """The qrels of the test split, or the only ones in BEIR's folder `qrels`."""
    inside = folder / "qrels"
    if test := _first(inside, _plain_and_gz("test.tsv")):
        return test
    listed = sorted(inside.iterdir()) if inside.is_dir() else []
    splits = [path for path in listed if path.is_file() and not path.name.startswith(".")]
    if len(splits) > 1:
        names = ", ".join(path.name for path in splits)
        remedy = f"choose one by adding ,qrels={splits[0]}"
        raise UserError(f"`dataset={spec}`: several qrels in {inside} ({names}): {remedy}")
    return splits[0] if splits else None


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _unique(texts: Iterable[Text], source: Path) -> dict[str, Text]:
    unique: dict[str, Text] = {}
    for text in texts:
        if text.id in unique:
            first, second, *_ = find_lines(source, text.id)
            raise DataError(
                f"{second}: query {text.id!r} stands at {first} too: keep one of them"
            )
        unique[text.id] = text
    return unique


def _nothing_judged(files: DatasetFiles, query: str, judged: str) -> DataError:
    return DataError(
        f"{files.qrels}: queries without qrels: none of its queries ({judged!r}, …) is in "
        f"{files.queries} ({query!r}, …): name the qrels of these queries, as in "
        f"`dataset={files.name}:corpus={files.corpus},queries={files.queries},qrels=PATH`"
    )


def _digest(texts: Sequence[Text], qrels: Qrels) -> str:
    said = [[(text.id, text.title, text.text) for text in texts], qrels]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
