"""Tests that the measures by rank equal those of ir_measures."""

import os
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.metrics import ranks

NAMES = (
    "RR RR@1 RR@10 RR(rel=2)@5 P@1 P@5 P@20 P(rel=2)@5 R@1 R@10 R@20 R(rel=2)@5 Success@1"
    " Success@5 AP AP@3 AP(rel=2) AP(rel=2)@10 nDCG nDCG@1 nDCG@5 nDCG@20"
).split()
DATA = Path(os.environ.get("JAXVAL_DATA", "data"))


def judgments(qrels):
    """Returns judgments of documents named by their rows. Other documents are missing."""
    documents = {document for grades in qrels.values() for document in grades}
    rows = {document: int(document) for document in documents if document.isdigit()}
    return ranks.Judgments.from_qrels(qrels, tuple(qrels), rows)


def theirs(measures, qrels, run):
    values = {str(measure): {} for measure in measures}
    for metric in ir_measures.iter_calc(measures, qrels, run):
        values[str(metric.measure)][metric.query_id] = metric.value
    return values


@st.composite
def collections(draw):
    """Draws judgments and rankings of twenty rows; two documents are missing."""
    docs = [*map(str, range(20)), "outside:a", "outside:b"]
    queries = [f"q{i}" for i in range(draw(st.integers(1, 4)))]
    grades = st.dictionaries(st.sampled_from(docs), st.integers(0, 4), min_size=1, max_size=9)
    depth = draw(st.integers(1, 20))
    rows = [draw(st.permutations(range(20)))[:depth] for _ in queries]
    return {query: draw(grades) for query in queries}, queries, np.array(rows)


@given(collections())
def test_values_equal_those_of_ir_measures(world):
    qrels, queries, rows = world
    measures = [ir_measures.parse_measure(name) for name in NAMES]
    depth = rows.shape[1]
    run = {
        query: {str(row): float(depth - rank) for rank, row in enumerate(ranked)}
        for query, ranked in zip(queries, rows.tolist(), strict=True)
    }
    expected = theirs(measures, qrels, run)
    graded = ranks.grade(judgments(qrels), rows)
    for measure in measures:
        assert ranks.computes(measure)
        wanted = [expected[str(measure)].get(query, 0.0) for query in queries]
        assert ranks.compute(measure, graded) == pytest.approx(wanted, abs=1e-9), measure


def test_a_grade_below_0_counts_as_0():
    graded = ranks.grade(judgments({"q": {"0": -2, "1": 3, "2": -1}}), np.array([[0, 1, 2]]))
    clipped = ranks.grade(judgments({"q": {"0": 0, "1": 3, "2": 0}}), np.array([[0, 1, 2]]))
    for name in NAMES:
        measure = ir_measures.parse_measure(name)
        assert ranks.compute(measure, graded) == ranks.compute(measure, clipped), name


@pytest.mark.parametrize(
    "name", ["nDCG(dcg='exp-log2')@10", "ERR@10", "Rprec", "RBP", "NumRel"]
)
def test_a_measure_with_other_parameters_is_not_computed(name):
    assert not ranks.computes(ir_measures.parse_measure(name))


@pytest.mark.parametrize("qrels", ["qrels.test", "qrels.rel_level"])
def test_values_equal_those_of_ir_measures_on_nists_samples(qrels):
    samples = DATA / "trec-eval-samples"
    if not samples.is_dir():
        pytest.skip(f"{samples} is not there: set JAXVAL_DATA")
    judged = ir_measures.util.QrelsConverter(
        list(ir_measures.read_trec_qrels(str(samples / qrels)))
    ).as_dict_of_dict()
    run = ir_measures.util.RunConverter(
        list(ir_measures.read_trec_run(str(samples / "results.test")))
    ).as_dict_of_dict()
    measures = [ir_measures.parse_measure(name) for name in NAMES]
    for query in sorted(judged.keys() & run.keys()):
        # As trec_eval orders them: by score, and equal ones by falling id.
        ranked = sorted(run[query], key=lambda doc: (run[query][doc], doc), reverse=True)
        number = {doc: i for i, doc in enumerate(ranked)}
        grades = {str(number.get(doc, f"outside:{doc}")): g for doc, g in judged[query].items()}
        graded = ranks.grade(judgments({query: grades}), np.arange(len(ranked))[None, :])
        scores = {doc: float(len(ranked) - i) for doc, i in number.items()}
        expected = theirs(measures, {query: judged[query]}, {query: scores})
        for measure in measures:
            wanted = expected[str(measure)].get(query, 0.0)
            assert ranks.compute(measure, graded)[0] == pytest.approx(wanted, abs=1e-9), measure
