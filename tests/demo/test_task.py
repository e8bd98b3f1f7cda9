"""Tests of the demo's task, on a package small enough to check by hand."""

import csv
import json
from pathlib import Path

import pytest

from jaxval.demo import task

AREA = '''
"""A module's own docstring is no function's."""

def area(side):
    """Returns the area of a square.

    The side's length is multiplied by itself, whatever its unit may be.
    """

class Circle:
    """A class is no function. It has a text, but its methods are what counts here, not it."""

    async def grow(self):
        """Makes the circle larger by a step. The step is read from the settings of
        the drawing, and is one by default."""

def short():
    """Too short. This first sentence has two words, and so it is not much of a question."""

def bare(): ...
'''
COPIES = '''
def again():
    """Returns the area of a square.

    Another passage for the same question, which would then have two answers.
    """

def echo():
    """Says all that it knows. For it says all that it knows, again and again and again."""
'''


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    root = tmp_path / "shapes"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text(AREA)
    (root / "copies.py").write_text(COPIES)
    (root / "broken.py").write_text("def (:")
    (root / "tests" / "skipped.py").write_text(AREA.replace("area", "volume"))
    return root


def some_pairs(count: int) -> list[task.Pair]:
    return [
        task.Pair(f"m.f{n}", "m", f"What does function {n} do?", f"It returns {n} ü.")
        for n in range(count)
    ]


def test_reads_the_functions_that_make_a_useful_pair(shapes):
    assert task.read_pairs({"shapes": shapes}) == [
        task.Pair(
            "shapes.Circle.grow",
            "shapes",
            "Makes the circle larger by a step.",
            "The step is read from the settings of the drawing, and is one by default.",
        ),
        task.Pair(
            "shapes.area",
            "shapes",
            "Returns the area of a square.",
            "The side's length is multiplied by itself, whatever its unit may be.",
        ),
    ]


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        (
            "Finds roots, e.g. by bisection, of f. " + "More " * 10,
            "Finds roots, e.g. by bisection, of f.",
        ),
        ("A line that never comes to its end\n\n" + "more " * 10, None),
        ("args: x (int), a number of things. " + "More " * 10, None),
        ("A question that has no answer at all.", None),
    ],
)
def test_the_first_sentence_is_the_query(docstring, query):
    pair = task.pair_of("m.f", "m", docstring)
    assert (pair and pair.query) == query


def test_no_passage_of_the_real_task_holds_its_query():
    root = task.source_roots(["absent_package"])
    assert list(root) == [""]
    pairs = task.read_pairs({"json": root[""] / "json", "logging": root[""] / "logging"})
    assert len(pairs) > 20
    assert not [p for p in pairs if p.query.lower().rstrip(".") in p.passage.lower()]


def test_the_split_does_not_depend_on_the_order():
    pairs = some_pairs(40)
    corpus, train = task.split(pairs, queries=5, passages=12)
    assert (corpus, train) == task.split(pairs[::-1], queries=5, passages=12)
    assert (len(corpus), len(train)) == (12, 35)
    assert not {p.id for p in corpus[:5]} & {p.id for p in train}


def test_a_new_function_does_not_move_the_others():
    before, _ = task.split(some_pairs(40), queries=5, passages=40)
    after, _ = task.split(some_pairs(41), queries=5, passages=41)
    assert [p for p in after if p.id != "m.f40"] == before


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="none is left for training"):
        task.split(some_pairs(5), queries=5, passages=5)


def test_writes_a_beir_folder(tmp_path):
    corpus = some_pairs(3)
    task.write(tmp_path, corpus, corpus[:2], corpus[2:])
    passages, queries, train = (
        [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]
        for name in ("corpus.jsonl", "queries.jsonl", "train.jsonl")
    )
    assert passages[0] == {"_id": "m.f0", "title": "m", "text": "It returns 0 ü."}
    assert queries[1] == {"_id": "m.f1", "text": "What does function 1 do?"}
    assert [pair["id"] for pair in train] == ["m.f2"]
    with (tmp_path / "qrels" / "test.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["query-id", "corpus-id", "score"]
    assert rows[1:] == [["m.f0", "m.f0", "1"], ["m.f1", "m.f1", "1"]]


def test_builds_once_for_the_same_settings(tmp_path, shapes, capsys):
    data, model = tmp_path / "data", tmp_path / "model"
    settings = task.Settings(queries=1, passages=2, vocabulary=200)
    task.build(data, model, settings, {"shapes": shapes})
    task.build(data, model, settings, {"shapes": tmp_path / "nothing here"})
    assert "already" in capsys.readouterr().out


def test_auto_tokenizer_reads_the_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    task.write_tokenizer(tmp_path, ["the area of a square"] * 3, vocabulary=60)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("The area")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "area", "[SEP]"]
    assert tokenizer.pad_token_id == 0
