"""`rerank`: only each query's candidates from a run file are encoded and scored."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import world

CANDIDATES = {
    "q0": ["p3", "p0", "p7"],
    "q1": ["p12", "p10"],  # p11 is relevant and not a candidate
    "q2": ["p24", "p1", "p2", "elsewhere"],
}
BY_DOCUMENT = sorted({p for ps in CANDIDATES.values() for p in ps if p in world.PASSAGES})


def average_ranks(step):
    """AvgRank with NumPy; a passage that is not a candidate has rank 4, the longest list 3."""
    values = []
    for query, text in world.QUERIES.items():
        candidates = [p for p in world.PASSAGES if p in CANDIDATES.get(query, ())]
        scores = [vector(step, world.PASSAGES[p]) @ vector(step, text) for p in candidates]
        ranked = [candidates[i] for i in np.argsort(-np.array(scores), kind="stable")]
        ranks = [ranked.index(p) + 1 if p in ranked else 4 for p in world.QRELS[query]]
        values.append(np.mean(ranks))
    return np.mean(values)


def vector(step, text):
    words = ["[CLS]", *text.split(), "[SEP]"]
    return world.table(step)[[world.VOCABULARY.index(word) for word in words]].mean(0)


@pytest.fixture
def place(place):
    place.file = place.root / "run.trec.gz"
    write(place.file, CANDIDATES)
    place.settings |= {"rerank": place.file, "measures": ("AvgRank", "RR@10")}
    return place


def write(path, candidates):
    lines = [
        f"{query} Q0 {passage} {rank} {-rank} bm25\n"
        for query, passages in candidates.items()
        for rank, passage in enumerate(passages, 1)
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(lines)


def test_only_a_querys_candidates_are_scored_for_it(place):
    place.put(3, 4, 5)
    assert place.run(write_run="msmarco", keep_best=1) == 0
    assert "1 of 4 judged queries are not in" in place.log
    assert f"1 of {len(BY_DOCUMENT) + 1} candidates are not in the corpus" in place.log
    assert "are not candidates; they count as never found" in place.log
    lines = {line["step"]: line for line in place.lines()}
    assert list(lines) == [3, 4, 5]
    assert {line["passages"] for line in lines.values()} == {len(BY_DOCUMENT)}
    ranks = {step: line["measures"]["AvgRank"] for step, line in lines.items()}
    assert ranks == pytest.approx({step: average_ranks(step) for step in lines})
    best = min(ranks, key=ranks.get)
    assert "best so far by AvgRank (lower is better)" in place.out
    assert f"best on tiny: step {best}, AvgRank {ranks[best]:.4f}" in place.out
    assert (place.output / "best" / "best").readlink().name.endswith(f"_{best}")
    run = (place.output / "runs" / "tiny" / f"{best}.msmarco").read_text().splitlines()
    pairs = {tuple(line.split("\t")[:2]) for line in run}
    assert pairs == {(q, p) for q, ps in CANDIDATES.items() for p in ps} - {("q2", "elsewhere")}


def test_with_every_passage_as_a_candidate_the_values_are_those_of_the_search(place):
    place.put(4)
    write(place.file, {query: list(world.PASSAGES) for query in world.QUERIES})
    assert place.run() == 0
    assert place.run(rerank=None) == 0
    assert "tiny: candidates changed since the last run; starting a new series" in place.log
    reranked, searched = place.lines()
    assert reranked["measures"] == pytest.approx(searched["measures"])
    assert reranked["series"] != searched["series"]
    write(place.file, {query: list(world.PASSAGES)[::-1] for query in world.QUERIES})
    assert place.run() == 0
    assert "1 already in the ledger" in place.out  # the order of candidates does not count


@pytest.mark.parametrize(
    ("candidates", "settings", "message"),
    [
        ({"q0": ["x1", "x2"]}, {}, "none of the passages it names ('x1', …) is in "),
        ({"q0": ["p1"]}, {}, "none of the judged documents is in "),
        ({"other": ["p1"]}, {}, "none of its queries ('other', …) is among the judged"),
        (CANDIDATES, {"rerank": Path("/no/run")}, "/no/run: "),
        (CANDIDATES, {"confirm": "best"}, "`confirm` and `rerank` cannot be combined"),
    ],
)
def test_wrong_runs_are_refused(place, candidates, settings, message):
    write(place.file, candidates)
    assert message in place.refused(**settings)
