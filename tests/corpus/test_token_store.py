import dataclasses
import itertools
import json
import multiprocessing
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.corpus import readers, token_store
from jaxval.corpus.token_store import Bucket, Recipe, choose_widths
from jaxval.errors import DataError
from jaxval.records import Text

RECIPE = Recipe("{title} {text}", "", 32)
LETTERS = st.text(st.sampled_from("abc"), max_size=40).map(" ".join)
GIVEN_IDS = st.lists(st.integers(0, 29), max_size=40).map(tuple)


def contents(store):
    """Returns the token ids of each row, read by bucket, as the encoder does."""
    tokens = {}
    for bucket in store.buckets:
        for place, row in enumerate(store.matrix(bucket), start=bucket.start):
            tokens[int(store.rows[place])] = row[: store.lengths[place]].tolist()
    return [tokens[row] for row in range(store.count)]


def expected(text, max_len):
    """Returns the token ids that the tiny tokenizer gives for letters or token ids."""
    if isinstance(text, str):
        text = tuple(4 + ord(letter) - ord("a") for letter in text.split())
    return [2, *text[: max_len - 2], 3]


def open_or_build(directory, texts, tokenizer, silent, origin="origin", recipe=RECIPE):
    return token_store.open_or_build(
        directory, texts, origin, tokenizer, recipe, find_lines=lambda _: [], bar=silent
    )


# The store


def test_a_store_by_hand(store):
    made = store(["a b", "c", tuple(range(4, 14)), ""], max_len=16)
    assert made.buckets == (Bucket(8, 0, 3), Bucket(16, 3, 1))
    assert made.matrix(made.buckets[0]).tolist() == [
        [2, 4, 5, 3, 0, 0, 0, 0],
        [2, 6, 3, 0, 0, 0, 0, 0],
        [2, 3, 0, 0, 0, 0, 0, 0],
    ]
    assert made.rows.tolist() == [0, 1, 3, 2]
    assert made.lengths.tolist() == [4, 3, 2, 12]
    assert (made.count, made.tokens, made.padded, made.full) == (4, 21, 40, 0)


@given(st.lists(st.one_of(LETTERS, GIVEN_IDS), min_size=1, max_size=30), st.integers(3, 33))
def test_every_text_can_be_read_back(store, texts, max_len):
    made = store(texts, max_len=max_len)
    wanted = [expected(text, max_len) for text in texts]
    assert contents(made) == wanted
    assert made.tokens == sum(map(len, wanted))
    assert made.full == sum(len(row) == max_len for row in wanted)
    assert sum(bucket.count for bucket in made.buckets) == made.count == len(texts)


def test_texts_of_one_length_make_one_bucket(store):
    assert store(["a b c d e f g"] * 3).buckets == (Bucket(16, 0, 3),)


def test_more_texts_than_a_block(store):
    texts = ["a " * (row % 23) for row in range(20_000)]
    assert contents(store(texts)) == [expected(text, 64) for text in texts]


def test_the_title_and_the_prefix_are_tokenized_too(store):
    made = store([Text("1", "c", title="b"), Text("2", "c")], prefix="a ")
    assert contents(made) == [[2, 4, 5, 6, 3], [2, 4, 6, 3]]


def test_a_large_vocabulary_takes_four_bytes_per_token(tmp_path, silent):
    from tokenizers import Tokenizer, models, pre_tokenizers

    from jaxval.corpus.tokenizer import wrap

    backend = Tokenizer(models.WordLevel({f"a{n}": n for n in range(70_000)}, unk_token="a1"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = open_or_build(tmp_path, [Text("1", "a69999 a65536")], wrap(backend), silent)
    assert contents(made) == [[69_999, 65_536]]


# Ids


IDS = st.lists(st.text(st.sampled_from("abé漢𝄞-1"), min_size=1), min_size=1, unique=True)


@given(IDS, st.data())
def test_ids_of_rows(store, ids, data):
    made = store([Text(id_, "a " * (3 * len(id_))) for id_ in ids])
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1)))
    assert made.ids(np.array(rows, np.int64)) == [ids[row] for row in rows]


@given(IDS, st.lists(st.text(st.sampled_from("abé漢𝄞-1"))))
def test_find_is_the_inverse_of_ids(store, ids, others):
    made = store([Text(id_, "a") for id_ in ids])
    assert made.find(ids) == {id_: row for row, id_ in enumerate(ids)}
    assert made.find(others) == {id_: ids.index(id_) for id_ in others if id_ in ids}


def test_both_lines_of_a_duplicate_id_are_named(tmp_path, tiny_tokenizer, silent):
    source = tmp_path / "corpus.jsonl"
    source.write_text("".join(json.dumps({"_id": i, "text": "a"}) + "\n" for i in "pqrq"))
    directory = tmp_path / "tokens"
    with pytest.raises(DataError) as caught:
        token_store.open_or_build(
            directory,
            readers.read_texts(source),
            "origin",
            tiny_tokenizer,
            RECIPE,
            find_lines=lambda id_: readers.find_lines(source, id_),
            bar=silent,
        )
    assert "'q' occurs 2 times" in str(caught.value)
    assert f"{source}:2, {source}:4" in str(caught.value)
    assert list(directory.iterdir()) == []


def test_an_empty_collection_is_refused(tmp_path, tiny_tokenizer, silent):
    with pytest.raises(DataError, match="no text"):
        open_or_build(tmp_path, [], tiny_tokenizer, silent)


# Reopening and concurrent builds


def unreadable():
    raise AssertionError("the texts were read")
    yield


def test_a_store_is_built_once(tmp_path, tiny_tokenizer, silent):
    texts = [Text("x", "a b c"), Text("y", "z")]
    first = open_or_build(tmp_path, texts, tiny_tokenizer, silent)
    second = open_or_build(tmp_path, unreadable(), tiny_tokenizer, silent)
    assert second == first
    assert contents(second) == contents(first) == [[2, 4, 5, 6, 3], [2, 29, 3]]


@pytest.mark.parametrize(
    ("recipe", "digest"),
    [
        (Recipe("{title} {text}", "", 32), "a38f29efac11a329159af9c5796153d6"),
        (Recipe("{text}", "query: é", 64), "02bf0c566d241cb8712b6b5e1d10d202"),
    ],
)
def test_the_stores_of_earlier_versions_are_still_valid(tiny_tokenizer, recipe, digest):
    tokenizer = dataclasses.replace(tiny_tokenizer, digest="a1" * 32)
    assert token_store.digest("0f" * 32, tokenizer, recipe) == digest


def test_a_new_field_with_a_default_makes_no_other_store(tiny_tokenizer):
    extended = dataclasses.make_dataclass(
        "Extended", [("lower", bool, False)], bases=(Recipe,), frozen=True
    )
    before = token_store.digest("origin", tiny_tokenizer, Recipe("{text}", "", 32))
    assert token_store.digest("origin", tiny_tokenizer, extended("{text}", "", 32)) == before
    changed = extended("{text}", "", 32, lower=True)
    assert token_store.digest("origin", tiny_tokenizer, changed) != before


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "another"},
        {"recipe": Recipe("{text}", "", 32)},
        {"recipe": Recipe("{title} {text}", "a ", 32)},
        {"recipe": Recipe("{title} {text}", "", 31)},
    ],
)
def test_a_change_of_the_tokens_makes_another_store(tmp_path, tiny_tokenizer, silent, change):
    texts = [Text("x", "a")]
    first = open_or_build(tmp_path, texts, tiny_tokenizer, silent)
    second = open_or_build(tmp_path, texts, tiny_tokenizer, silent, **change)
    assert second.digest != first.digest
    assert len(list(tmp_path.iterdir())) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path, tiny_tokenizer, silent):
    def broken():
        yield Text("x", "a")
        raise DataError("line 2")

    with pytest.raises(DataError, match="line 2"):
        open_or_build(tmp_path, broken(), tiny_tokenizer, silent)
    assert list(tmp_path.iterdir()) == []
    made = open_or_build(tmp_path, [Text("x", "a")], tiny_tokenizer, silent)
    assert contents(made) == [[2, 4, 3]]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from jaxval.corpus import tokenizer, token_store as tokens
    from jaxval.records import Text

    class Bar:
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def update(self, n): os.kill(os.getpid(), signal.SIGKILL)

    texts = [Text("x", "a b")]
    recipe = tokens.Recipe("{title} {text}", "", 32)
    made = tokenizer.load(sys.argv[2])
    tokens.open_or_build(
        Path(sys.argv[1]), texts, "origin", made, recipe, find_lines=list, bar=Bar
    )
"""


def test_a_killed_build_is_not_opened(tmp_path, tokenizer_folder, silent):
    from jaxval.corpus import tokenizer

    directory = tmp_path / "tokens"
    script = textwrap.dedent(KILLED)
    command = [sys.executable, "-c", script, str(directory), str(tokenizer_folder)]
    ended = subprocess.run(command, check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = directory.iterdir()
    assert left.name.endswith(".partial")
    same = tokenizer.load(str(tokenizer_folder))
    made = open_or_build(directory, [Text("x", "a b")], same, silent)
    assert made.path != left
    assert contents(made) == [[2, 4, 5, 3]]


def _build_beside_another(directory, folder, barrier, results):
    from jaxval.corpus import tokenizer

    def texts():
        for row in range(50):
            yield Text(str(row), "a " * row)
        barrier.wait(60)  # both read everything before one publishes

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            pass

    store = token_store.open_or_build(
        directory, texts(), "origin", tokenizer.load(folder), RECIPE, find_lines=list, bar=Bar
    )
    results.put((store, contents(store)))


def test_two_processes_build_the_same_store(tmp_path, tokenizer_folder):
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    arguments = (tmp_path, str(tokenizer_folder), barrier, results)
    both = [spawn.Process(target=_build_beside_another, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    (first, first_rows), (second, second_rows) = (results.get(timeout=100) for _ in both)
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert first == second
    assert first_rows == second_rows == [expected("a " * row, 32) for row in range(50)]
    assert list(tmp_path.iterdir()) == [first.path]


# Widths


HISTOGRAMS = st.dictionaries(st.integers(0, 130), st.integers(1, 500), min_size=1, max_size=30)


def histogram_of(counts):
    return np.bincount(list(counts), list(counts.values())).astype(int)


def padded(histogram, widths):
    lengths = np.arange(len(histogram))
    return int((np.asarray(widths)[np.searchsorted(widths, lengths)] * histogram).sum())


@pytest.mark.parametrize(
    ("lengths", "max_len", "widths"),
    [
        ([8, 8], 64, [8]),
        ([9, 9], 64, [16]),
        ([8, 16], 64, [8, 16]),
        ([8] * 100 + [7], 64, [8]),
        ([3] * 100, 5, [5]),
        ([8] * 9 + [20] * 9, 20, [8, 20]),
        ([12] + [20] * 100, 20, [20]),  # no token is wasted on a width of 24
        ([0, 0], 64, [8]),
    ],
)
def test_widths_by_hand(lengths, max_len, widths):
    assert choose_widths(np.bincount(lengths), max_len) == widths


def test_there_are_at_most_sixteen_widths():
    assert choose_widths(np.ones(1025, int), 1024) == list(range(64, 1025, 64))


@given(HISTOGRAMS, st.integers(0, 20))
def test_widths(counts, room):
    histogram, longest = histogram_of(counts), max(counts)
    max_len = max(longest + room, 3)
    widths = choose_widths(histogram, max_len)
    assert widths == sorted(set(widths))
    assert all(width % 8 == 0 or width == max_len for width in widths)
    assert longest <= widths[-1] <= max_len
    used = np.bincount(np.searchsorted(widths, list(counts)), minlength=len(widths))
    assert (used > 0).all()
    most = padded(histogram, [min(-(-max(longest, 1) // 8) * 8, max_len)])
    assert padded(histogram, widths) <= most


@given(HISTOGRAMS)
def test_padding_is_below_five_percent_or_there_are_sixteen_widths(counts):
    histogram = histogram_of(counts)
    widths = choose_widths(histogram, 131)
    real = int(np.arange(len(histogram)) @ histogram)
    finest = len({max(-(-length // 8), 1) for length in counts})  # more would not help
    assert padded(histogram, widths) * 0.95 <= real or len(widths) == min(finest, 16)


@given(
    st.dictionaries(st.integers(1, 50), st.integers(1, 99), min_size=1, max_size=8),
    st.sampled_from([50, 51, 52, 56, 90]),
)
def test_widths_are_the_fewest_and_best(counts, max_len):
    histogram = histogram_of(counts)
    widths = choose_widths(histogram, max_len)
    real = int(np.arange(len(histogram)) @ histogram)
    last = min(-(-max(counts) // 8) * 8, max_len)

    def best(many):
        inner = itertools.combinations(range(8, last, 8), many - 1)
        return min((padded(histogram, [*some, last]) for some in inner), default=10**9)

    assert padded(histogram, widths) == best(len(widths))
    assert all(best(many) * 0.95 > real for many in range(1, len(widths)))
