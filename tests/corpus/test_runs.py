import gzip
import random
import re
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.corpus.runs import read_run
from jaxval.errors import DataError
from jaxval.records import Hits
from jaxval.results.run_files import write_run

IDS = st.text(st.sampled_from("abz019-_/#é"), min_size=1, max_size=3)
RUNS = st.dictionaries(
    IDS, st.lists(IDS, unique=True, min_size=1, max_size=6), min_size=1, max_size=4
)
EVERY = frozenset({"1", "2", "q"})


def write(path, content):
    raw = content.encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def hits(path, depth=100, queries=EVERY):
    return dict(read_run(path, depth, queries).hits)


def written(run, form):
    """Returns the run's lines, by query and rank."""
    return [
        f"{query}\t{doc}\t{rank}\n" if form == "msmarco" else f"{query} Q0 {doc} {rank} 0.5 t\n"
        for query, docs in run.items()
        for rank, doc in enumerate(docs, start=1)
    ]


@given(
    run=RUNS,
    form=st.sampled_from(["trec", "msmarco"]),
    name=st.sampled_from(["run", "run.trec", "run.tsv.gz"]),
    depth=st.integers(1, 7),
    seed=st.randoms(use_true_random=False),
)
def test_the_rank_decides_in_any_order_of_the_lines(tmp_path, run, form, name, depth, seed):
    lines = written(run, form)
    seed.shuffle(lines)
    path = write(tmp_path / name, "".join(lines))
    assert hits(path, depth, run) == {query: tuple(docs[:depth]) for query, docs in run.items()}


@given(run=RUNS, depth=st.integers(1, 7))
def test_a_sorted_run_gives_asyncvals_passages(tmp_path, run, depth):
    """Asyncval uses the passages of the first lines of each query."""
    path = write(tmp_path / "run", "".join(written(run, "msmarco")))
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    taken = {
        row[1] for _, block in groupby(rows, lambda r: r[0]) for row in list(block)[:depth]
    }
    assert {doc for docs in hits(path, depth, run).values() for doc in docs} == taken


@pytest.mark.parametrize(
    "content",
    [
        "1 Q0 a 1 9 t\n1 Q0 b 2 8 t\n2 Q0 a 1 9 t\n",
        "2 Q0 a 0 9 t\n1 Q0 b 5 8 t\n1 Q0 a -1 9 t\n",
        "  1  Q0 a 1 9.5e-1 t \n\n 1\tQ0 b\t2 8 t\t\n2 Q0 a 1 nan t",
        "1\tQ0\ta\t 104\t  2.1\tST D\n1\tQ0\tb\t414\t  1.7\tST D\n2\tQ0\ta\t1\t1\tST D\n",
        "\ufeff1\ta\t1\r\n1\tb\t2\r\n2\ta\t1\r\n",
        "1 a 1 \n 1 b 2\n2   a   1\n",
        "1\ta\t1\t\n 1\tb\t 2 \n2\ta\t1\n",
        "1 a 1\n1 b 1\n2 a 1\n",  # the first line wins among equal ranks
    ],
)
def test_formats_by_hand(tmp_path, content):
    path = write(tmp_path / "run", content)
    assert hits(path) == {"1": ("a", "b"), "2": ("a",)}
    assert hits(path, depth=1) == {"1": ("a",), "2": ("a",)}


def test_ids_may_contain_blanks_in_tab_separated_lines(tmp_path):
    path = write(tmp_path / "run", "q\ta b\t2\nq\ta c\t1\n")
    assert hits(path) == {"q": ("a c", "a b")}


def test_a_duplicate_passage_counts_twice_and_is_returned_once(tmp_path):
    path = write(tmp_path / "run", "q a 1\nq a 2\nq b 3\n")
    assert hits(path, depth=2) == {"q": ("a",)}
    assert hits(path, depth=3) == {"q": ("a", "b")}


def test_other_queries_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "run", "q a 1\nr b 1\nr c 2\ns d 1\n")
    run = read_run(path, 9, {"q", "unranked"})
    assert (run.path, run.hits, run.others) == (path, {"q": ("a",)}, 2)


@pytest.mark.parametrize("form", ["trec", "msmarco"])
def test_run_files_of_jaxval_can_be_read(tmp_path, form):
    rows = np.array([[4, 0, 2], [0, 1, 4]])
    written = Hits(np.zeros((2, 3), np.float32), rows)
    path = tmp_path / "7"
    write_run(path, form, ["q", "é"], written, lambda some: [f"d{row}" for row in some], "t")
    assert hits(path, 2, {"q", "é"}) == {"q": ("d4", "d0"), "é": ("d0", "d1")}


def test_memory_holds_only_the_best_passages(tmp_path):
    lines = [f"q d{rank} {rank}\n" for rank in range(1, 5001)]
    random.Random(0).shuffle(lines)
    path = write(tmp_path / "run.gz", "".join(lines))
    assert hits(path, 3) == {"q": ("d1", "d2", "d3")}


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        ("q b 2", "3 columns", "write each line as 'query Q0 document rank score tag'"),
        ("q Q0 b 2 1.5", "5 columns", "write each line as 'query Q0 document rank score tag'"),
        ("q Q0 b 2 1.5 my tag", "7 columns", "'query Q0 document rank score tag'"),
        ("q Q0 b 1.5 2 t", "'1.5' is not a rank", "write an integer, 1 for the best"),
        ("q\tQ0\t\t2\t1.5\tt", "an empty id", "'query Q0 document rank score tag'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, what, remedy):
    path = write(tmp_path / "run", f"q Q0 a 1 2.5 t\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_run(path, 9, EVERY)
    assert str(caught.value).startswith(f"{path}:3: {what}")
    assert remedy in str(caught.value)


def test_an_unknown_format_is_named(tmp_path):
    path = write(tmp_path / "run", "q 0 a 1\n")  # these are qrels
    forms = "'query document rank' or 'query Q0 document rank score tag'"
    with pytest.raises(DataError, match=f"{path}:1: 4 columns: write each line as {forms}"):
        read_run(path, 9, EVERY)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_run_is_named(tmp_path, content):
    path = write(tmp_path / "run", content)
    with pytest.raises(DataError, match=f"{path}: no line in it: write lines of 'query Q0 doc"):
        read_run(path, 9, EVERY)


def test_a_run_of_other_queries_is_named(tmp_path):
    path = write(tmp_path / "run", "s a 1\nr a 1\n")
    expected = f"{path}: none of its queries ('r', …) is among the judged queries ('7', …): "
    with pytest.raises(DataError, match=re.escape(expected)):
        read_run(path, 9, {"7"})


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(DataError, match=r"run: No such file or directory: check the path"):
        read_run(tmp_path / "run", 9, EVERY)
