"""What the study is made of: real questions, real distractors, a small real encoder.

SQuAD's dev questions over all its passages and, as distractors, passages of AWS's manuals. The
SQuAD passages are divided in two by the hashes of their ids: the questions of one half are
trained on, and some of the other half's are the validation queries. All passages are in the
corpus, so the queries have distractors of their own domain too, judged for no one.
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
    """Writes `folder/set`, in BEIR's form, and `folder/train.jsonl`."""
    squad = parse(f"squad:{data / 'squad-dev'}")
    asked = load_queries(squad)
    passages = list(readers.read_texts(squad.corpus))
    corpus = itertools.chain(passages, _distractors(data, distractors))
    held_out = [t.id for t in asked.texts if not _trained_on(_relevant(asked.qrels[t.id]))]
    chosen = frozenset(draw(held_out, queries, 0, ()))
    kept = [text for text in asked.texts if text.id in chosen]
    shutil.rmtree(folder / "set", ignore_errors=True)
    (folder / "set").mkdir(parents=True)
    beir.write(folder / "set", corpus, kept, {text.id: asked.qrels[text.id] for text in kept})
    by_id = {text.id: text for text in passages}
    pairs = ((text, by_id[_relevant(asked.qrels[text.id])]) for text in asked.texts)
    _write_pairs(folder / "train.jsonl", pairs)


def cut_model(folder: Path, model: Path, layers: int) -> None:
    """Copies a sentence-transformers folder, its encoder cut to the first layers."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))


def _write_pairs(path: Path, pairs: Iterable[tuple[Text, Text]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for query, passage in pairs:
            if _trained_on(passage.id):
                pair = {"query": query.text, "passage": f"{passage.title} {passage.text}"}
                file.write(json.dumps(pair) + "\n")


def _distractors(data: Path, count: int) -> Iterable[Text]:
    (path,) = (data / "awsdocs-passages").glob("corpus.jsonl*")
    return itertools.islice(readers.read_texts(path), count)


def _relevant(grades: dict[str, int]) -> str:
    return max(grades, key=lambda passage: grades[passage])


def _trained_on(passage: str) -> bool:
    return hashlib.sha256(passage.encode()).digest()[0] % 2 == 0
