import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxval.corpus.qrels import read_qrels
from jaxval.errors import DataError

IDS = st.text(st.sampled_from("abz019-_/#é"), min_size=1, max_size=6)
BLANK_IDS = st.text(st.sampled_from("ab 1"), max_size=6).map(str.strip).filter(bool)
GRADES = st.integers(-2, 5)


def qrels_of(ids):
    return st.dictionaries(
        ids, st.dictionaries(ids, GRADES, min_size=1, max_size=4), min_size=1, max_size=4
    )


def written(qrels, separator, iteration, header, ending):
    middle = ["0"] if iteration else []
    rows = [
        separator.join([query, *middle, document, str(grade) + ending])
        for query, grades in qrels.items()
        for document, grade in grades.items()
    ]
    names = separator.join(["query-id", *middle, "corpus-id", "score"])
    return "\n".join([names] * header + rows) + "\n"


def read(content, name="q.tsv"):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        raw = content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return read_qrels(path)


@given(
    qrels=qrels_of(IDS),
    separator=st.sampled_from([" ", "\t", "  ", " \t "]),
    iteration=st.booleans(),
    header=st.booleans(),
    ending=st.sampled_from(["", ".0", ".", " ", "\r"]),
    name=st.sampled_from(["q.tsv", "qrels", "q.trec.gz"]),
)
@settings(deadline=None)
def test_all_formats_give_the_same_judgments(qrels, separator, iteration, header, ending, name):
    assert read(written(qrels, separator, iteration, header, ending), name) == qrels


@given(qrels=qrels_of(BLANK_IDS), iteration=st.booleans(), header=st.booleans())
@settings(deadline=None)
def test_ids_may_contain_blanks_in_tab_separated_lines(qrels, iteration, header):
    assert read(written(qrels, "\t", iteration, header, "")) == qrels


def test_a_repeated_judgment_counts_once():
    assert read("q 0 d 1\nq 0 d 1\nq 0 e 0\n") == {"q": {"d": 1, "e": 0}}


def test_bom_and_blank_lines_are_tolerated():
    assert read("\ufeffquery-id\tcorpus-id\tscore\r\n\r\nq\td\t1\r\n") == {"q": {"d": 1}}


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        ("q 0 d 2", "grade 2 for query 'q' and document 'd', which had 1 before", "keep one"),
        ("q d 1", "3 columns", "write each line as 'query 0 document grade'"),
        ("q", "1 columns", "write each line as 'query 0 document grade'"),
        ("q 0 e high", "'high' is not a grade", "write an integer, such as 0, 1 or 2"),
        ("q 0 e 0.5", "'0.5' is not a grade", "write an integer"),
        ("q 0 e nan", "'nan' is not a grade", "write an integer"),
        ("q 0 e score", "'score' is not a grade", "write an integer"),
        ("q\t0\t\t1", "an empty id", "write each line as 'query 0 document grade'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, what, remedy):
    path = tmp_path / "q.trec"
    path.write_text(f"q 0 d 1\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_qrels(path)
    assert str(caught.value).startswith(f"{path}:3: {what}")
    assert remedy in str(caught.value)


def test_an_unknown_format_is_named(tmp_path):
    path = tmp_path / "q.trec"
    path.write_text("q d\n")
    forms = "'query document grade' or 'query 0 document grade'"
    with pytest.raises(DataError, match=f"{path}:1: 2 columns: write each line as {forms}"):
        read_qrels(path)


@pytest.mark.parametrize("content", ["", "\n", "query-id\tcorpus-id\tscore\n"])
def test_an_empty_file_is_named(tmp_path, content):
    path = tmp_path / "q.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path}: no judgment in it: write lines of 'query 0"):
        read_qrels(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"q\.tsv: No such file or directory: check the path"):
        read_qrels(tmp_path / "q.tsv")
