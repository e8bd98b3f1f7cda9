"""Wrong settings and data end the run with one message, before anything is validated."""

import pytest


def bad_line(place):
    (place.texts / "corpus.jsonl").write_text('{"_id": "p0", "text": "red"}\n{"_id": \n')


def duplicate(place):
    (place.texts / "corpus.jsonl").write_text('{"_id": "p0", "text": "red"}\n' * 2)


def empty(place):
    (place.texts / "corpus.jsonl").write_text("")


def unjudged(place):
    (place.texts / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nother\tp0\t1\n"
    )


def strangers(place):
    (place.texts / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tx9\t1\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (bad_line, "corpus.jsonl:2: "),
        (duplicate, "'p0' occurs 2 times"),
        (empty, "no text in it"),
        (unjudged, "test.tsv"),
        (strangers, "none of the judged documents is in"),
        ({"measures": ("RR@10", "Nonsense@3")}, "`measures`: 'Nonsense@3' is no measure"),
        ({"measures": ("R@1000",)}, "`depth=1000`"),
        ({"depth": 0}, "depth"),
        ({"factory": "tests.e2e.world:encoders"}, "no 'encoders'; nearest: encoder"),
        ({"factory": "no.such.module:f"}, "importing no.such.module raised"),
        ({"tokenizer": "/no/such/folder"}, "`tokenizer=/no/such/folder`: "),
        ({"passage_template": "{titel} {text}"}, "passage_template='{titel} {text}'"),
        ({"folder": "somewhere"}, "set one of `model"),
        ({"pooling": "mean"}, "`pooling`"),
        ({"select_by": "tiny:AP"}, "`select_by=tiny:AP`: write NAME:MEASURE"),
    ],
)
def test_it_is_one_message_and_nothing_is_validated(place, change, expected):
    place.put(3)
    if callable(change):
        change(place)
        change = {}
    message = place.refused(**change)
    assert expected in message
    assert place.out == ""
    assert not (place.output / "ledger.sqlite").exists()
