import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jaxval.corpus import beir
from jaxval.corpus.qrels import read_qrels
from jaxval.corpus.readers import read_texts
from jaxval.records import Text

PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TOKENS = st.lists(st.integers(0, 30_000), max_size=5).map(tuple)
IDS = st.text(st.sampled_from("abz019-_/#é "), min_size=1, max_size=6).map(str.strip)
TEXTS = st.lists(st.builds(Text, IDS.filter(bool), PLAIN | TOKENS, PLAIN), min_size=1)
QRELS = st.dictionaries(
    IDS.filter(bool),
    st.dictionaries(IDS.filter(bool), st.integers(-2, 5), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@given(passages=TEXTS, queries=TEXTS, qrels=QRELS)
def test_texts_and_qrels_survive_a_round_trip(passages, queries, qrels):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        beir.write(folder, iter(passages), iter(queries), qrels)
        assert list(read_texts(folder / "corpus.jsonl")) == passages
        assert list(read_texts(folder / "queries.jsonl")) == queries
        assert read_qrels(folder / "qrels" / "test.tsv") == qrels


def test_lines_have_beirs_format(tmp_path):
    passages = [Text("p 1", "ü\u2028", "T"), Text("p2", (7, 8))]
    beir.write(tmp_path, passages, [Text("q", "what?")], {"q": {"p 1": 2, "p2": -1}})
    assert (tmp_path / "corpus.jsonl").read_bytes().decode() == (
        '{"_id": "p 1", "title": "T", "text": "ü\u2028"}\n'
        '{"_id": "p2", "title": "", "text": [7, 8]}\n'
    )
    assert json.loads((tmp_path / "queries.jsonl").read_text()) == {"_id": "q", "text": "what?"}
    assert (tmp_path / "qrels" / "test.tsv").read_text() == (
        "query-id\tcorpus-id\tscore\nq\tp 1\t2\nq\tp2\t-1\n"
    )
