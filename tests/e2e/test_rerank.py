"""--rerank=RUN: each query's own candidates, and nothing else, are encoded and scored."""

import gzip

import numpy as np
import pytest

from tests.e2e import world
from tests.e2e.test_main import Run

CANDIDATES = {
    "q0": ["p3", "p0", "p7"],
    "q1": ["p12", "p10"],  # p11 is relevant, and none
    "q2": ["p24", "p1", "p2", "elsewhere"],
}
BY_DOCUMENT = sorted({p for ps in CANDIDATES.values() for p in ps if p in world.PASSAGES})


def average_ranks(step):
    """By NumPy alone; three is the longest list that the corpus has."""
    values = []
    for query, text in world.QUERIES.items():
        own = [p for p in world.PASSAGES if p in CANDIDATES.get(query, ())]
        scores = [vector(step, world.PASSAGES[p]) @ vector(step, text) for p in own]
        ranked = [own[i] for i in np.argsort(-np.array(scores), kind="stable")]
        found = [ranked.index(p) + 1 if p in ranked else 4 for p in world.QRELS[query]]
        values.append(np.mean(found))
    return np.mean(values)


def vector(step, text):
    words = ["[CLS]", *text.split(), "[SEP]"]
    return world.table(step)[[world.VOCABULARY.index(word) for word in words]].mean(0)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    run.file = tmp_path / "run.trec.gz"
    write(run.file, CANDIDATES)
    run.flags |= {"rerank": run.file, "measures": "AvgRank,RR@10"}
    return run


def write(path, candidates):
    lines = [
        f"{query} Q0 {passage} {rank} {-rank} bm25\n"
        for query, passages in candidates.items()
        for rank, passage in enumerate(passages, 1)
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(lines)


def test_only_its_own_candidates_are_scored_for_a_query(run):
    world.save(run.checkpoints, [3, 4, 5])
    status, out, err = run.finish(write_run="msmarco", keep_best=1)
    assert status == 0, err
    assert "1 of 4 judged queries are not in" in err
    assert f"1 of {len(BY_DOCUMENT) + 1} candidates are not in the corpus" in err
    assert "are not candidates; they count as never found" in err
    lines = {line["step"]: line for line in run.lines()}
    assert [line["passages"] for line in lines.values()] == [len(BY_DOCUMENT)] * len(lines)
    ranks = {step: line["measures"]["AvgRank"] for step, line in lines.items()}
    assert ranks == pytest.approx({step: average_ranks(step) for step in lines})
    best = min(ranks, key=ranks.get)
    assert "best so far by AvgRank (lower is better)" in out
    assert f"best on tiny: step {best}, AvgRank {ranks[best]:.4f}" in out
    assert (run.output / "best" / "best").readlink().name.endswith(f"_{best}")
    written = (run.output / "runs" / "tiny" / f"{best}.msmarco").read_text().splitlines()
    pairs = {tuple(line.split("\t")[:2]) for line in written}
    assert pairs == {(q, p) for q, ps in CANDIDATES.items() for p in ps} - {("q2", "elsewhere")}


def test_with_every_passage_as_candidate_it_is_the_search_in_a_series_of_its_own(run):
    world.save(run.checkpoints, [4])
    write(run.file, {query: list(world.PASSAGES) for query in world.QUERIES})
    assert run.finish()[0] == 0
    status, _, err = run.finish(rerank="")
    assert status == 0, err
    assert "another candidates than before" in err
    reranked, searched = run.lines()
    assert reranked["measures"] == pytest.approx(searched["measures"])
    assert reranked["series"] != searched["series"]
    write(run.file, {query: list(world.PASSAGES)[::-1] for query in world.QUERIES})
    assert "1 already in the ledger" in run.finish()[1]  # the same candidates


@pytest.mark.parametrize(
    ("candidates", "flags", "said"),
    [
        ({"q0": ["x1", "x2"]}, {}, "none of the passages it names ('x1', …) is in "),
        ({"q0": ["p1"]}, {}, "none of the judged documents is in "),
        ({"other": ["p1"]}, {}, "none of its queries ('other', …) is among the judged"),
        (CANDIDATES, {"rerank": "/no/run"}, "/no/run: "),
        (CANDIDATES, {"confirm": "best"}, "--confirm and --rerank do not go together"),
    ],
)
def test_what_cannot_be_reranked_is_said(run, candidates, flags, said):
    write(run.file, candidates)
    status, _, err = run.finish(**flags)
    (fault,) = [line for line in err.splitlines() if line.startswith("jaxval: ")]
    assert (status, said in fault) == (2, True), fault
