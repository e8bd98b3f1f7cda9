"""Builds the study's retrieval task and its encoder from real data.

The corpus is all passages of SQuAD's dev set and, as distractors, passages of AWS's manuals.
The hashes of their ids divide the SQuAD passages into two halves. Questions about one half are
for training. Some of the questions about the other half are the validation queries. The
passages of the first half are distractors from the domain of the queries.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from jaxval.corpus import beir, readers
from jaxval.corpus.datasets import load_queries, parse
from jaxval.records import Text
from jaxval.sampling.strategies import draw


def build(folder: Path, data: Path, queries: int, distractors: int) -> None:
    """Writes `folder/set`, in BEIR format, and `folder/train.jsonl`.

    Args:
      folder: Folder to write to.
      data: Folder of the collections squad-dev and awsdocs-passages.
      queries: Number of validation queries.
      distractors: Number of passages of awsdocs-passages.
    """
    squad = parse(f"squad:{data / 'squad-dev'}")
    questions = load_queries(squad)
    passages = list(readers.read_texts(squad.corpus))
    corpus = itertools.chain(passages, _distractors(data, distractors))
    qrels = questions.qrels
    held_out = [text.id for text in questions.texts if not _is_train(_relevant(qrels[text.id]))]
    chosen = frozenset(draw(held_out, queries, 0, ()))
    kept = [text for text in questions.texts if text.id in chosen]
    shutil.rmtree(folder / "set", ignore_errors=True)
    (folder / "set").mkdir(parents=True)
    beir.write(folder / "set", corpus, kept, {text.id: qrels[text.id] for text in kept})
    by_id = {text.id: text for text in passages}
    pairs = ((text, by_id[_relevant(qrels[text.id])]) for text in questions.texts)
    _write_pairs(folder / "train.jsonl", pairs)


def cut_model(folder: Path, model: Path, layers: int) -> None:
    """Copies a sentence-transformers folder, and keeps only the first layers of its encoder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))


def _write_pairs(path: Path, pairs: Iterable[tuple[Text, Text]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for query, passage in pairs:
            if _is_train(passage.id):
                pair = {"query": query.text, "passage": f"{passage.title} {passage.text}"}
                file.write(json.dumps(pair) + "\n")


def _distractors(data: Path, count: int) -> Iterable[Text]:
    (path,) = (data / "awsdocs-passages").glob("corpus.jsonl*")
    return itertools.islice(readers.read_texts(path), count)


def _relevant(grades: dict[str, int]) -> str:
    return max(grades, key=lambda passage: grades[passage])


def _is_train(passage: str) -> bool:
    """Returns whether questions about a passage are for training."""
    return hashlib.sha256(passage.encode()).digest()[0] % 2 == 0
