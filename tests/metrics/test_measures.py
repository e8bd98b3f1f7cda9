"""Tests of the measures, by hand and against ir_measures."""

import math
import shutil

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.errors import UserError
from jaxval.metrics import measures
from jaxval.metrics.ranks import Judgments
from jaxval.records import Hits

NEEDS_PERL = pytest.mark.skipif(not shutil.which("perl"), reason="gdeval is a Perl program")


def hits(*rows):
    """Returns hits from the ranked rows of each query. All scores are equal."""
    rows = np.array(rows, np.int64).reshape(len(rows), -1)
    return Hits(np.ones(rows.shape, np.float32), rows)


def judgments(qrels, query_ids=None):
    """Returns judgments of documents named by their rows. Other documents are missing."""
    documents = {document for grades in qrels.values() for document in grades}
    rows = {document: int(document) for document in documents if document.isdigit()}
    return Judgments.from_qrels(qrels, query_ids or tuple(qrels), rows)


def values(names, qrels, hits, query_ids=None):
    parsed = measures.parse(names.split(), depth=1000)
    return measures.evaluate(parsed, judgments(qrels, query_ids), hits)


def value_of(name, grades, *rows):
    """Returns the value of one query with these ranked rows."""
    (value,) = values(name, {"q": grades}, hits(rows))[name]
    return value


IDEAL_2_1 = 2 / math.log2(2) + 1 / math.log2(3)


@pytest.mark.parametrize(
    ("name", "grades", "rows", "value"),
    [
        ("RR@10", {"7": 1}, (7, 8, 9), 1),
        ("RR@10", {"9": 1, "8": 1}, (7, 8, 9), 1 / 2),
        ("RR@2", {"9": 1}, (7, 8, 9), 0),
        ("R@100", {"7": 1, "9": 2, "5": 1, "4": 1}, (7, 8, 9), 2 / 4),
        ("R@2", {"7": 1, "9": 1}, (7, 8, 9), 1 / 2),
        ("P@3", {"7": 1, "9": 1, "8": 0}, (7, 8, 9), 2 / 3),
        ("P@5", {"7": 1}, (7, 8, 9), 1 / 5),
        ("AP", {"7": 1, "9": 1}, (7, 8, 9), (1 / 1 + 2 / 3) / 2),
        ("AP", {"7": 1, "9": 1, "1": 1}, (7, 8, 9), (1 / 1 + 2 / 3) / 3),
        ("Success@1", {"8": 1}, (7, 8, 9), 0),
        ("Success@2", {"8": 1}, (7, 8, 9), 1),
        ("nDCG@10", {"7": 2, "8": 1}, (7, 8, 9), 1),
        ("nDCG@10", {"7": 1, "9": 2}, (7, 8, 9), (1 + 2 / math.log2(4)) / IDEAL_2_1),
        ("nDCG@10", {"9": 1}, (7, 8, 9), 1 / math.log2(4)),
        ("AvgRank", {"8": 1}, (7, 8, 9), 2),
        ("AvgRank", {"7": 1, "9": 2, "8": 0}, (7, 8, 9), (1 + 3) / 2),
        ("AvgRank", {"7": 1, "1": 1}, (7, 8, 9), (1 + 4) / 2),  # 1 is not found
        ("AvgRank", {"outside:x": 1}, (7, 8, 9), 4),
        ("AvgRank", {"7": 0}, (7, 8, 9), 4),  # nothing is relevant
        ("AvgRank(rel=2)", {"7": 1, "9": 2}, (7, 8, 9), 3),
        pytest.param("ERR@10", {"9": 1}, (7, 8, 9), 1 / 16 / 3, marks=NEEDS_PERL),
    ],
)
def test_values_are_those_by_hand(name, grades, rows, value):
    assert value_of(name, grades, *rows) == pytest.approx(value, abs=1e-5)


def test_documents_that_the_corpus_lacks_count_as_never_found():
    inside, outside = {"7": 1}, {"7": 1, "outside:x": 1}
    assert value_of("R@10", inside, 7, 8) == 1
    assert value_of("R@10", outside, 7, 8) == 1 / 2
    assert value_of("AP", outside, 7, 8) == 1 / 2
    assert value_of("RR@10", outside, 7, 8) == 1


@pytest.mark.parametrize("name", ["RR@10", "nDCG@10", "R@100", "AP", "P@5", "Success@1"])
def test_a_query_without_a_relevant_hit_is_0(name):
    assert value_of(name, {"3": 1}, 7, 8) == 0
    assert value_of(name, {"3": 0}, 3, 8) == 0  # judged, and nothing is relevant
    assert value_of(name, {"3": 1}) == 0  # no hit at all


def test_values_are_in_the_order_of_the_queries():
    qrels = {"b": {"1": 1}, "a": {"2": 1}, "10": {"3": 1}, "9": {"3": 1}}
    ranked = hits((1, 9), (9, 2), (8, 9), (3, 4))
    assert values("RR@10", qrels, ranked)["RR@10"].tolist() == [1, 1 / 2, 0, 1]
    backwards = hits((3, 4), (8, 9), (9, 2), (1, 9))
    order = ("9", "10", "a", "b")
    assert values("RR@10", qrels, backwards, order)["RR@10"].tolist() == [1, 0, 1 / 2, 1]


def test_the_order_of_the_hits_decides_not_their_scores():
    for rows in ((5, 40, 300), (300, 40, 5), (40, 300, 5)):
        assert value_of("RR@10", {"40": 1}, *rows) == 1 / (1 + rows.index(40))


def test_names_are_those_of_ir_measures():
    assert list(values("MRR@10 NDCG@3", {"q": {"1": 1}}, hits((1,)))) == ["RR@10", "nDCG@3"]


def test_a_query_whose_grades_are_all_below_0_has_a_value():
    assert value_of("Rprec", {"7": -1, "8": -2}, 7, 8) == 0


def test_a_query_may_have_fewer_hits_than_another_and_none_at_all():
    qrels = {"a": {"0": 1, "1": 1}, "b": {"0": 1}, "c": {"0": 1}}
    ranked = hits((5, 0, 1), (0, -1, -1), (-1, -1, -1))
    computed = values("RR@10 P@2 R@10 AvgRank Rprec NumRet", qrels, ranked)
    assert computed["RR@10"].tolist() == [1 / 2, 1, 0]
    assert computed["P@2"].tolist() == [1 / 2, 1 / 2, 0]
    assert computed["R@10"].tolist() == [1, 1, 0]
    assert computed["AvgRank"].tolist() == [5 / 2, 1, 4]
    assert computed["Rprec"].tolist() == [1 / 2, 1, 0]  # by ir_measures
    assert computed["NumRet"].tolist() == [3, 1, 0]


def test_only_for_an_average_rank_lower_is_better():
    parsed = measures.parse(["RR@10", "AvgRank", "AvgRank(rel=2)"], 100)
    assert [measures.lower_is_better(measure) for measure in parsed] == [False, True, True]
    assert [str(measure) for measure in parsed[1:]] == ["AvgRank", "AvgRank(rel=2)"]


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 10_000))
def test_values_equal_those_of_ir_measures(queries, depth, seed):
    rng = np.random.default_rng(seed)
    names = [f"query {number}" for number in range(queries)]
    judged = {
        name: {
            str(row): int(grade)
            for row, grade in zip(rng.permutation(20)[:7], rng.integers(0, 4, 7), strict=True)
        }
        for name in names
    }
    rows = np.array([rng.permutation(20)[:depth] for _ in names])
    scores = -np.sort(-rng.normal(size=rows.shape)).astype(np.float32)
    wanted = "RR@10 nDCG@10 R@100 AP P(rel=2)@5 Success@3"
    actual = values(wanted, judged, Hits(scores, rows))
    run = {
        name: dict(zip(map(str, row), map(float, score), strict=True))
        for name, row, score in zip(names, rows, scores, strict=True)
    }
    parsed = [ir_measures.parse_measure(name) for name in wanted.split()]
    for metric in ir_measures.iter_calc(parsed, judged, run):
        value = actual[str(metric.measure)][names.index(metric.query_id)]
        assert value == pytest.approx(metric.value, abs=1e-9)
    means = ir_measures.calc_aggregate(parsed, judged, run)
    for measure, mean in means.items():
        assert actual[str(measure)].mean() == pytest.approx(mean, abs=1e-12)


# Names


def refused(*names, depth=100):
    with pytest.raises(UserError) as caught:
        measures.parse(names, depth)
    message = str(caught.value)
    assert message.startswith("`measures`")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "name",
    [
        "foo",
        "RR@",
        "RR@ten",
        "@10",
        "",
        "nDCG@10@10",
        "alpha_nDCG@10",
        "RR@10 P@5",
        "AvgRank@5",
    ],
)
def test_an_unknown_name_is_an_error(name):
    message = refused("RR@10", name)
    assert repr(name) in message
    assert "Examples: RR@10" in message


@pytest.mark.parametrize("name", ["P", "R", "Success"])
def test_a_measure_without_its_cutoff_is_an_error(name):
    assert f"it needs a cutoff, as in {name}@10" in refused(name)


def test_no_measure_is_an_error():
    assert "is empty" in refused()


def test_a_cutoff_beyond_the_depth_is_an_error():
    message = refused("R@101", depth=100)
    assert "R@101 needs 101 hits and `depth=100`" in message
    assert "`depth=101` or more" in message
    assert [str(measure) for measure in measures.parse(["R@100", "AP"], 100)] == ["R@100", "AP"]
