"""Reads relevance judgments in the formats of TREC, MS MARCO and BEIR."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from jaxval.corpus.readers import fields, lines
from jaxval.errors import DataError

_FORMS = {3: "'query document grade'", 4: "'query 0 document grade'"}
_HEADERS = {"score", "grade", "relevance", "rel", "label"}
_GRADE = re.compile(r"([+-]?[0-9]{1,9})(?:\.0*)?")


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Reads the judgments of a file.

    Every line is `query 0 document grade` (TREC, MS MARCO), or every line is `query document
    grade` (BEIR, with or without its header). Columns are separated by tabs, and then ids
    may contain blanks; or by blanks.

    Args:
      path: The file, plain or .gz.

    Returns:
      Query id -> document id -> grade.

    Raises:
      DataError: A line cannot be used, a pair has two grades, or there is no judgment.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, document, grade) in _judgments(path):
        known = qrels.setdefault(query, {}).setdefault(document, grade)
        if known != grade:
            pair = f"query {query!r} and document {document!r}"
            raise DataError(
                f"{path}:{number}: grade {grade} for {pair}, which had {known} before:"
                " keep one of them"
            )
    if not qrels:
        raise DataError(f"{path}: no judgment in it: write lines of {_FORMS[4]}")
    return qrels


def _judgments(path: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
    """Yields (line number, (query, document, grade))."""
    width = 0
    for number, line in lines(path):
        columns = fields(line, _FORMS)
        is_first, width = not width, width or len(columns)
        if is_first and columns[-1].lower() in _HEADERS:
            continue
        try:
            yield number, _judgment(columns, width)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from error


def _judgment(columns: list[str], width: int) -> tuple[str, str, int]:
    if len(columns) != width or width not in _FORMS:
        form = _FORMS.get(width, " or ".join(_FORMS.values()))
        raise ValueError(f"{len(columns)} columns: write each line as {form}")
    query, document, grade = columns[0], columns[-2], _GRADE.fullmatch(columns[-1])
    if not (query and document):
        raise ValueError(f"an empty id: write each line as {_FORMS[width]}")
    if grade is None:
        raise ValueError(f"{columns[-1]!r} is not a grade: write an integer, such as 0, 1 or 2")
    return query, document, int(grade[1])
