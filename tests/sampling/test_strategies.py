import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxval.corpus.datasets import QuerySet
from jaxval.corpus.runs import Run
from jaxval.errors import DataError, UserError
from jaxval.records import Text
from jaxval.sampling import strategies
from jaxval.sampling.strategies import Selection, Sieve, Strategy, draw

IDS = st.text(st.sampled_from("abc019"), min_size=1, max_size=3)
CORPORA = st.lists(IDS, unique=True, min_size=1, max_size=30)
QUERIES = st.sampled_from(["q", "r", "s"])
QRELS = st.dictionaries(
    QUERIES, st.dictionaries(IDS, st.integers(-1, 3), min_size=1, max_size=3), min_size=1
)
HITS = st.dictionaries(QUERIES, st.lists(IDS, unique=True, min_size=1, max_size=6).map(tuple))
NUMBERS = st.none() | st.integers(1, 40)
STRATEGIES = st.builds(
    Strategy, run=NUMBERS, bm25=st.none(), dense=NUMBERS, random=NUMBERS, full=st.booleans()
)


def query_set(qrels):
    texts = tuple(Text(query, f"the words of {query}") for query in qrels)
    return QuerySet("dev", texts, qrels, unjudged=0, unknown_queries=0, digest="")


def runs_of(*hits):
    return [
        Run(Path(f"run{number}"), hits_of_run, 0) for number, hits_of_run in enumerate(hits)
    ]


def passages(ids):
    return [Text(id_, f"word{id_} both") for id_ in ids]


def select(text, qrels, corpus=(), runs=({},), seed=0, ranked=None):
    strategy = text if isinstance(text, Strategy) else strategies.parse(text)
    (selection,) = strategies.select(
        [strategy], query_set(qrels), lambda: passages(corpus), runs_of(*runs), seed, ranked
    )
    return selection


def sieved(selection, corpus, watched=()):
    sieve = Sieve(selection, watched, lambda id_: ["c:1", "c:2"])
    return [text.id for text in sieve.passed(passages(corpus))], sieve


# parse


@pytest.mark.parametrize(
    ("text", "strategy", "plain"),
    [
        ("run:depth=100", Strategy(run=100), None),
        ("bm25:depth=7", Strategy(bm25=7), None),
        ("dense:depth=4", Strategy(dense=4), None),
        ("random:size=10000", Strategy(random=10000), None),
        ("full", Strategy(full=True), None),
        (
            "random:size=3 + run:depth=2",
            Strategy(run=2, random=3),
            "run:depth=2+random:size=3",
        ),
        (
            "full+bm25:depth=1+random:size=3+run:depth=2",
            Strategy(run=2, bm25=1, random=3, full=True),
            "run:depth=2+bm25:depth=1+random:size=3+full",
        ),
    ],
)
def test_strategies_by_hand(text, strategy, plain):
    assert strategies.parse(text) == strategy
    assert str(strategy) == (plain or text)
    assert strategies.parse(str(strategy)) == strategy


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", ""),
        ("runs:depth=3", "runs:depth=3"),
        ("run", "run"),
        ("run:size=3", "run:size=3"),
        ("run:depth=0", "run:depth=0"),
        ("run:depth=-1", "run:depth=-1"),
        ("run:depth=1e3", "run:depth=1e3"),
        ("random:size=3,seed=4", "random:size=3,seed=4"),
        ("full:size=3", "full:size=3"),
        ("full+", ""),
        ("random:size=3++full", ""),
    ],
)
def test_a_bad_part_is_named(text, part):
    with pytest.raises(UserError) as caught:
        strategies.parse(text)
    assert str(caught.value) == (
        f"`strategy={text}`: {part!r} is none of run:depth=N, bm25:depth=N, dense:depth=N,"
        " random:size=N and full, joined by '+'"
    )


def test_a_duplicate_part_is_refused():
    with pytest.raises(UserError, match="run is given twice: keep one of them"):
        strategies.parse("run:depth=3+run:depth=4")


@pytest.mark.parametrize(
    ("texts", "step", "message"),
    [
        (["full", "dense:depth=9"], None, "`strategy=dense:depth=9` needs `dense_step=STEP`"),
        (["full"], 0, "`dense_step=0`: no `strategy` has a dense part"),
    ],
)
def test_a_dense_part_needs_a_step_and_vice_versa(texts, step, message):
    parsed = [strategies.parse(text) for text in texts]
    with pytest.raises(UserError, match=message):
        strategies.check_step(parsed, step)


# select, by hand


QRELS_BY_HAND = {"q": {"j1": 1, "j2": 0}, "r": {"j3": -1}}
HITS_BY_HAND = {"q": ("a", "j1", "b"), "r": ("c", "a", "d")}


@pytest.mark.parametrize(
    ("depth", "candidates", "besides"),
    [
        (1, {"q": ("a",), "r": ("c",)}, "a c"),
        (2, {"q": ("a", "j1"), "r": ("c", "a")}, "a c"),
        (3, HITS_BY_HAND, "a b c d"),
        (9, HITS_BY_HAND, "a b c d"),
    ],
)
def test_a_run_by_hand(depth, candidates, besides):
    """As in Asyncval's splitter: the first `depth` passages of each query, and the judged."""
    selection = select(f"run:depth={depth}", QRELS_BY_HAND, runs=[HITS_BY_HAND])
    assert selection.ids == {"j1", "j2", "j3", *besides.split()}
    assert selection.candidates == candidates


def test_runs_are_pooled():
    other = {"q": ("e", "a"), "s": ("f",)}
    selection = select("run:depth=2", QRELS_BY_HAND, runs=[HITS_BY_HAND, other])
    assert selection.candidates == {"q": ("a", "j1", "e"), "r": ("c", "a"), "s": ("f",)}
    assert selection.ids == {"j1", "j2", "j3", "a", "c", "e", "f"}


def test_dense_selects_from_the_checkpoints_ranking():
    ranked = {"q": ("b", "a"), "r": ("j3", "e", "f")}
    selection = select("dense:depth=2", QRELS_BY_HAND, ranked=ranked)
    assert selection.candidates == {"q": ("b", "a"), "r": ("j3", "e")}
    assert selection.ids == {"j1", "j2", "j3", "a", "b", "e"}


def test_bm25_by_hand():
    qrels = {"q": {"b": 1}}
    queries = QuerySet("dev", (Text("q", "worda"),), qrels, 0, 0, "")
    (selection,) = strategies.select(
        [Strategy(bm25=3)], queries, lambda: passages("cab"), [], seed=0
    )
    assert selection == Selection(Strategy(bm25=3), frozenset("ab"), {"q": ("a",)})


def test_full_has_no_ids():
    assert select("full", QRELS_BY_HAND).ids is None


def test_strategies_share_readings_of_the_corpus():
    opened = []

    def corpus():
        opened.append(True)
        return passages("abcdefgh")

    chosen = [
        strategies.parse(text)
        for text in (
            "random:size=2",
            "random:size=5",
            "bm25:depth=1",
            "bm25:depth=4+random:size=3",
        )
    ]
    queries = query_set({"q": {"a": 1}})
    together = strategies.select(chosen, queries, corpus, [], 3)
    assert len(opened) == 2
    alone = [strategies.select([strategy], queries, corpus, [], 3)[0] for strategy in chosen]
    assert together == alone


def test_a_run_part_without_runs_is_refused():
    with pytest.raises(UserError, match="has a run part, but there is no run: add `run=PATH`"):
        select("run:depth=3", QRELS_BY_HAND, runs=[])


# select, properties


@given(
    strategy=STRATEGIES,
    qrels=QRELS,
    hits=HITS,
    ranked=HITS,
    corpus=CORPORA,
    seed=st.integers(0, 9),
)
def test_judged_passages_are_kept_and_selection_is_deterministic(
    strategy, qrels, hits, ranked, corpus, seed
):
    selection = select(strategy, qrels, corpus, [hits], seed, ranked)
    judged = {doc for grades in qrels.values() for doc in grades}
    kept, _ = sieved(selection, corpus, judged)
    assert judged.intersection(corpus) <= set(kept)
    assert select(strategy, qrels, corpus, [hits], seed, ranked) == selection


@given(
    strategy=STRATEGIES,
    qrels=QRELS,
    hits=st.lists(HITS, min_size=1, max_size=3),
    corpus=CORPORA,
    shuffle=st.randoms(use_true_random=False),
)
def test_the_order_of_corpus_and_runs_does_not_matter(strategy, qrels, hits, corpus, shuffle):
    other, others = corpus[:], hits[:]
    shuffle.shuffle(other)
    shuffle.shuffle(others)
    assert select(strategy, qrels, other, others).ids == (
        select(strategy, qrels, corpus, hits).ids
    )


@given(strategy=STRATEGIES, qrels=QRELS, hits=HITS, ranked=HITS, corpus=CORPORA)
def test_parts_are_joined(strategy, qrels, hits, ranked, corpus):
    parts = [
        Strategy(run=strategy.run),
        Strategy(dense=strategy.dense),
        Strategy(random=strategy.random),
    ]
    alone = [select(part, qrels, corpus, [hits], ranked=ranked).ids for part in parts]
    joined = select(strategy, qrels, corpus, [hits], ranked=ranked).ids
    assert joined == (None if strategy.full else alone[0].union(*alone[1:]))


@given(qrels=QRELS, hits=HITS, depth=st.integers(1, 7))
def test_candidates_are_the_pool(qrels, hits, depth):
    selection = select(Strategy(run=depth), qrels, runs=[hits])
    judged = {doc for grades in qrels.values() for doc in grades}
    assert selection.ids == judged.union(*selection.candidates.values())


# draw


@given(
    ids=CORPORA, size=st.integers(0, 40), without=st.sets(IDS), seed=st.integers(0, 2**64 - 1)
)
def test_a_draw_has_its_size_and_is_the_beginning_of_a_larger_one(ids, size, without, seed):
    drawn = draw(iter(ids), size, seed, without)
    free = set(ids) - without
    assert len(drawn) == len(set(drawn)) == min(size, len(free))
    assert free.issuperset(drawn)
    assert draw(ids[::-1], size + 3, seed, without)[: len(drawn)] == drawn


def test_a_draw_stays_the_same_in_later_versions():
    ids = [f"d{number}" for number in range(100)]
    assert draw(ids, 3, 0, ()) == ["d85", "d4", "d97"]
    assert draw(ids, 3, 1, ()) == ["d12", "d7", "d88"]


def test_every_passage_is_drawn_about_as_often():
    ids = [str(number) for number in range(50)]
    drawn = [id_ for seed in range(400) for id_ in draw(ids, 5, seed, ())]
    counts = [drawn.count(id_) for id_ in ids]
    assert sum(counts) == 2000
    assert 15 < min(counts) <= max(counts) < 70  # the mean is 40, the deviation 6


def test_a_draw_reads_its_ids_once():
    ids = map(str, itertools.count())
    assert len(draw(itertools.islice(ids, 10_000), 2, 0, ())) == 2
    assert next(ids) == "10000"


# Sieve


@given(
    corpus=CORPORA, ids=st.none() | st.frozensets(IDS, max_size=20), watched=st.frozensets(IDS)
)
def test_a_sieve_keeps_the_order_and_counts(corpus, ids, watched):
    kept, sieve = sieved(Selection(Strategy(), ids, {}), corpus, watched)
    assert kept == [id_ for id_ in corpus if ids is None or id_ in ids]
    assert (sieve.read, sieve.kept) == (len(corpus), len(kept))
    assert sieve.missing == (watched if ids is None else ids) - set(corpus)


def test_a_sieve_is_lazy():
    endless = (Text(str(number), "") for number in itertools.count())
    sieve = Sieve(Selection(Strategy(), frozenset({"3", "1"}), {}), (), lambda _: [])
    passed = sieve.passed(endless)
    assert next(passed).id == "1"
    assert (sieve.read, sieve.kept, sieve.missing) == (2, 1, {"3"})
    assert next(passed).id == "3"
    assert next(endless).id == "4"


@pytest.mark.parametrize("ids", [frozenset("a"), None])
def test_both_lines_of_a_duplicate_passage_are_named(ids):
    with pytest.raises(DataError, match=r"id 'a' occurs 2 times \(c:1, c:2\): ids must be"):
        sieved(Selection(Strategy(), ids, {}), ["a", "b", "b", "a"], watched={"a"})
