"""Writes a validation set in BEIR's format: corpus.jsonl, queries.jsonl and qrels/test.tsv."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxval.records import Qrels, Text


def write(
    folder: Path, passages: Iterable[Text], queries: Iterable[Text], qrels: Qrels
) -> None:
    """Writes the files of a validation set, one text at a time.

    A text of token ids is written as a list of integers, which `readers` reads back. Every
    passage has a title, which may be empty, because BEIR's code expects one.

    Args:
      folder: An existing folder.
      passages: The corpus, which may be read lazily.
      queries: The queries, which may be read lazily.
      qrels: The judgments.
    """
    with (folder / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_line(text, {"title": text.title}) for text in passages)
    with (folder / "queries.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(
            _line(text, {"title": text.title} if text.title else {}) for text in queries
        )
    (folder / "qrels").mkdir()
    with (folder / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(
            f"{query}\t{passage}\t{grade}\n"
            for query, grades in qrels.items()
            for passage, grade in grades.items()
        )


def _line(text: Text, title: dict[str, Any]) -> str:
    return json.dumps({"_id": text.id, **title, "text": text.text}, ensure_ascii=False) + "\n"
