import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.records import Hits
from jaxval.results.run_files import write_run

HITS = Hits(
    np.array([[2.5, 1.25, 1.25], [-1, -1.5, -20]], np.float32), np.array([[4, 0, 2], [0, 1, 4]])
)


def ids(rows):
    return [f"doc-{row}" for row in rows]


def write(path, form, hits=HITS, queries=("q1", "é2")):
    write_run(path, form, queries, hits, ids, "jaxval-7")
    return path.read_text()


def test_trec_by_hand(tmp_path):
    assert write(tmp_path / "7.trec", "trec").splitlines() == [
        "q1 Q0 doc-4 1 2.5 jaxval-7",
        "q1 Q0 doc-0 2 1.25 jaxval-7",
        "q1 Q0 doc-2 3 1.25 jaxval-7",
        "é2 Q0 doc-0 1 -1 jaxval-7",
        "é2 Q0 doc-1 2 -1.5 jaxval-7",
        "é2 Q0 doc-4 3 -20 jaxval-7",
    ]


def test_msmarco_by_hand(tmp_path):
    assert write(tmp_path / "7.msmarco", "msmarco").splitlines() == [
        "q1\tdoc-4\t1",
        "q1\tdoc-0\t2",
        "q1\tdoc-2\t3",
        "é2\tdoc-0\t1",
        "é2\tdoc-1\t2",
        "é2\tdoc-4\t3",
    ]


def test_a_query_with_fewer_hits_has_fewer_lines(tmp_path):
    rows = np.array([[4, -1, -1], [-1, -1, -1]])
    fewer = Hits(np.where(rows < 0, -np.inf, 2).astype(np.float32), rows)
    assert write(tmp_path / "7", "msmarco", fewer) == "q1\tdoc-4\t1\n"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_a_trec_file_is_read_back_with_the_same_scores(tmp_path, scores):
    scores = np.array([sorted(scores, reverse=True)], np.float32)
    rows = np.arange(scores.size)[None]
    write(tmp_path / "run", "trec", Hits(scores, rows), ["q"])
    read = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    assert [(hit.query_id, hit.doc_id) for hit in read] == [("q", i) for i in ids(rows[0])]
    assert [np.float32(hit.score) for hit in read] == scores[0].tolist()


@pytest.mark.parametrize("form", ["trec", "msmarco"])
def test_a_file_is_replaced_atomically(tmp_path, form):
    path = tmp_path / "runs" / "dev" / "7"
    before = write(path, form)

    def broken(rows):
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="gone"):
        write_run(path, form, ["q1", "é2"], HITS, broken, "tag")
    assert path.read_text() == before
    fewer = Hits(HITS.scores[:1, :1], HITS.rows[:1, :1])
    assert write(path, form, fewer, ["q1"]).count("\n") == 1
    assert list(path.parent.iterdir()) == [path]
