"""Writes a validation set in BEIR's form: corpus.jsonl, queries.jsonl and qrels/test.tsv."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxval.records import Qrels, Text


def write(
    folder: Path, passages: Iterable[Text], queries: Iterable[Text], qrels: Qrels
) -> None:
    """Fills a folder, a text at a time; both kinds of text may be read lazily.

    A text of token ids stays a list of them, as `readers` reads it. Passages always have a
    title, as BEIR's own code expects.
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
