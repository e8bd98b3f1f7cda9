"""The look before a first run: what it reports, and what each doubt takes to be raised."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxval.check import findings, timing
from jaxval.check.check_report import lines
from jaxval.check.checker import run
from jaxval.check.newest import Newest, newest
from jaxval.check.probe import choose, rank
from jaxval.check.timing import Pace, Timed
from jaxval.checkpoints.commit import committed
from jaxval.config import Config, Evaluation, Model, Output, Search, Texts, Watching
from jaxval.encoders import folder
from jaxval.encoders.adapter import from_linen
from jaxval.errors import UserError
from jaxval.evaluation.encode import Tower, matrix, place
from jaxval.evaluation.plan import EvalSet
from jaxval.metrics.ranks import Judgments
from jaxval.records import DatasetFiles, ParamsPaths
from tests.e2e import world

GOLDENS = Path(__file__).parents[1] / "encoders" / "goldens"
QUERIES = {f"q{number}": text for number, text in enumerate(world.PASSAGES.values())}
QRELS = {f"q{number}": {f"p{number}": 1} for number in range(len(QUERIES))}


class Place:
    """A world of 25 passages, each with a query of its own words, and a run that is to be."""

    def __init__(self, root):
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.texts = {"query_max_len": None, "passage_max_len": None}
        self.search = {"similarity": "cosine"}
        self.config = {}
        self.paths = ParamsPaths()
        self.encoder = "tests.e2e.world:encoder"
        self.tokenizer = world.write_tokenizer(root / "tokenizer")
        self.files = self.write("tiny")

    def write(self, name, passages=world.PASSAGES, queries=QUERIES, qrels=QRELS):
        data = world.write_texts(self.root / name, passages, queries, qrels)
        paths = (data / "corpus.jsonl", data / "queries.jsonl", data / "qrels" / "test.tsv")
        return DatasetFiles(name, *paths)

    def save(self, tree, step=7):
        with ocp.CheckpointManager(self.checkpoints) as manager:
            manager.save(step, args=ocp.args.StandardSave(tree))

    def made(self):
        out = self.root / "out"
        rest = {"datasets": (self.files,), "batch_tokens": 256} | self.config
        search = {"depth": 10, "measures": ("RR@10",)} | self.search
        texts = {"passage_template": "{text}", "token_dir": out / "tokens"} | self.texts
        model = Model(
            factory=self.encoder, tokenizer=str(self.tokenizer), params_paths=self.paths
        )
        return Config(
            watching=Watching(str(self.checkpoints), out / "pins"),
            evaluation=Evaluation(
                model=model, texts=Texts(**texts), search=Search(**search), **rest
            ),
            output=Output(out),
        )

    def check(self, silent, devices=2):
        return run(self.made(), lambda: jax.devices()[:devices], silent)


def words(table):
    return {"params": {"words": {"embedding": table}}}


@pytest.fixture
def planned(tmp_path):
    made = Place(tmp_path)
    made.save(words(world.table(3)))
    return made


def said(report):
    return [str(doubt) for doubt in report.doubts]


# What it reports


def test_of_a_sound_run_nothing_looks_wrong_and_nothing_but_tokens_is_written(planned, silent):
    report = planned.check(silent)
    assert (said(report), report.status) == ([], 0)
    text = "\n".join(lines(report))
    for part in (
        f"step 7, of 1 committed: {planned.checkpoints / '7'}",
        "at default/params",
        "1 arrays, 56 float32",
        "words/embedding [14, 4] float32",
        "best by         RR@10 on tiny",
        "25 of 4 tokens, at most 64; 0 (0.0%) are cut",
        "width:texts 8:25",
        "25 queries and 25 passages: 4 components",
        "nDCG@10 1.000 of these",
        "2 cpu",
        "256 tokens a device",
    ):
        assert part in text
    assert text.endswith("nothing looks wrong")
    assert [path.name for path in (planned.root / "out").iterdir()] == ["tokens"]


def test_padding_and_batches_are_those_of_a_validation(planned, silent):
    report = planned.check(silent)
    (seen,) = report.sets
    assert seen.queries.shapes == {(32, 8): 1}  # 25 texts of 4 tokens on two devices
    assert seen.queries.padding == pytest.approx(1 - 25 * 4 / (32 * 8))


def test_memory_is_that_of_the_parameters_and_the_program(planned, silent):
    report = planned.check(silent, devices=4)
    assert report.device.params == 14 * 4 * 4
    assert report.device.batch > 0
    assert report.host.ahead == 2 * report.device.params
    assert report.host.taken > 2**26


def test_without_a_checkpoint_all_else_is_looked_at(planned, silent):
    shutil.rmtree(planned.checkpoints)
    report = planned.check(silent)
    (doubt,) = said(report)
    assert doubt.startswith(f"error: no checkpoint is committed in {planned.checkpoints}")
    assert doubt.endswith("start the training, then check again")
    assert report.status == 2
    text = "\n".join(lines(report))
    assert f"none is committed in {planned.checkpoints}" in text
    assert "1 arrays, 56 float32" in text
    assert "in all" in text


def test_parameters_that_do_not_fit_are_an_error_beside_the_rest(planned, silent):
    planned.encoder = "tests.e2e.other:encoder"
    report = planned.check(silent)
    (doubt,) = said(report)
    assert "words/embedding" in doubt
    assert "`params_path" in doubt
    assert report.status == 2


def test_parameters_that_are_not_finite(planned, silent):
    planned.save(words(np.full((14, 4), np.nan, np.float32)), step=8)
    report = planned.check(silent)
    (doubt,) = said(report)
    assert "checkpoint 8" in doubt
    assert "NaN" in doubt
    assert report.status == 2


def test_a_checkpoint_that_goes_is_followed_by_the_next_newest(planned, silent):
    plan = planned.check(silent).plan
    gone = committed(planned.checkpoints)[0]
    planned.save(words(world.table(5)), step=9)
    listings = iter([[dataclasses.replace(gone, commit_ns=1)], committed(planned.checkpoints)])
    found = newest(str(planned.checkpoints), plan, lambda place: next(listings))
    assert (found.checkpoint.step, found.count, found.fault) == (9, 2, None)
    table = found.restored.params["words"]["embedding"]
    np.testing.assert_array_equal(table, world.table(5))


def test_a_checkpoint_that_may_not_be_read():
    unread = Newest("/place", 1, fault=PermissionError(13, "Permission denied"))
    (doubt,) = findings.unread(unread)
    assert doubt.error
    assert "/place cannot be read: [Errno 13] Permission denied: check who" in doubt.text


def test_settings_that_are_wrong_are_one_line_as_ever(planned, silent):
    planned.search["measures"] = ("Nonsense",)
    with pytest.raises(UserError, match="Nonsense"):
        planned.check(silent)


def test_every_set_is_looked_at_and_timed_by_corpus(planned, silent):
    half = {f"q{number}": QUERIES[f"q{number}"] for number in range(20)}
    other = planned.write("half", queries=half, qrels={query: QRELS[query] for query in half})
    few = dict(list(world.PASSAGES.items())[::-1])
    planned.config["datasets"] = (planned.files, other, planned.write("turned", passages=few))
    report = planned.check(silent)
    assert [seen.name for seen in report.sets] == ["tiny", "half", "turned"]
    assert [leg.names for leg in report.times.legs] == [("tiny", "half"), ("turned",)]
    assert said(report) == []


def test_with_confirm_the_time_is_told_of_both_ends(planned, silent):
    few = {id_: world.PASSAGES[id_] for id_ in list(world.PASSAGES)[:24]}
    planned.config |= {
        "datasets": (planned.write("few", few), planned.files),
        "confirm": "best",
    }
    text = "\n".join(lines(planned.check(silent)))
    assert "s if screened out, " in text
    assert "best by         RR@10 on tiny" in text


def test_with_rerank_the_candidates_are_told(planned, silent):
    run_file = planned.root / "run.trec"
    run_file.write_text("".join(f"q{n} Q0 p{n} 1 1 t\nq{n} Q0 p0 2 0 t\n" for n in range(25)))
    planned.search["rerank"] = run_file
    report = planned.check(silent)
    assert report.sets[0].candidates == pytest.approx(49 / 25)
    assert "2 candidates a query; no other is encoded" in "\n".join(lines(report))
    assert report.times.legs[0].search == 0


# What looks wrong


def test_queries_and_passages_that_are_cut(planned, silent):
    planned.texts |= {"query_max_len": 3, "passage_max_len": 3}
    queries, passages = said(planned.check(silent))
    assert queries.startswith("warning: tiny: 25 of 25 queries are cut off at 3 tokens")
    assert queries.endswith("set `query_max_len` to what the training had, or choose more")
    assert passages.startswith("warning: tiny: 25 of 25 passages reach the limit at 3 tokens")


def test_queries_that_just_fit_are_not_cut(planned, silent):
    planned.texts["query_max_len"] = 4
    report = planned.check(silent)
    assert (report.sets[0].queries.store.full, report.sets[0].queries.cut) == (25, 0)
    assert (said(report), report.status) == ([], 0)


def test_vectors_that_are_all_alike(planned, silent):
    planned.save(words(np.ones((14, 4), np.float32) + world.table(3) / 100), step=8)
    report = planned.check(silent)
    assert [doubt.partition("vectors of ")[2][:15] for doubt in said(report)] == [
        "25 queries are ",
        "25 passages are",
    ]
    assert "`pooling`" in said(report)[0]
    assert report.status == 2


def test_vectors_that_are_zero(planned, silent):
    planned.save(words(np.zeros((14, 4), np.float32)), step=8)
    report = planned.check(silent)
    assert "25 of 25 vectors of queries are all zeros" in said(report)[0]
    assert report.status == 2


def test_a_ranking_by_chance(planned, silent):
    turned = {f"q{number}": {f"p{(number + 12) % 25}": 1} for number in range(25)}
    planned.files = planned.write("turned", qrels=turned)
    report = planned.check(silent)
    (doubt,) = said(report)
    assert doubt.startswith("error: turned: nDCG@10 is 0.")
    assert "shuffling gives up to" in doubt
    assert report.status == 2


def test_a_similarity_that_is_not_that_of_the_training(planned, silent):
    planned.search["similarity"] = "dot"
    lengthy = world.table(3)
    lengthy[4] *= 5  # all that is red is near everything
    planned.save(words(lengthy), step=8)
    (doubt,) = said(planned.check(silent))
    assert doubt.startswith("warning: tiny: the vectors are not of unit length")
    assert "`similarity=cosine` ranks better than dot" in doubt


def test_two_towers_that_are_one(planned, silent):
    tower = words(world.table(3))["params"]
    planned.save({"query_encoder": tower, "ctx_encoder": tower}, step=8)
    report = planned.check(silent)
    (doubt,) = said(report)
    assert doubt.startswith("warning: the two towers are the same (default/query_encoder")
    assert "  towers          each its own" in list(lines(report))
    assert report.device.params == 2 * 14 * 4 * 4


def test_two_towers_that_differ_are_none(planned, silent):
    towers = {"query_encoder": world.table(3), "ctx_encoder": world.table(3) * 2}
    trees = {name: words(table)["params"] for name, table in towers.items()}
    planned.save(trees, step=8)
    assert said(planned.check(silent)) == []


def poisoned():
    """An encoder that makes NaN of finite parameters."""

    class Poisoned(nn.Module):
        @nn.compact
        def __call__(self, ids, mask):
            return nn.Embed(14, 4, name="words")(ids).sum(1) * jnp.nan

    return from_linen(Poisoned())


def test_vectors_that_are_not_finite(planned, silent):
    planned.encoder = "tests.check.test_check:poisoned"
    report = planned.check(silent)
    (doubt,) = said(report)
    assert doubt.startswith("error: tiny: the encoder made vectors with NaN")
    assert report.status == 2


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(GOLDENS / "bert", tmp_path / "model"))


def prefixes(model, *stand, name="my/model"):
    return [doubt.text for doubt in findings.prefixes(folder.read(str(model)), name, *stand)]


def test_prompts_of_the_folder_that_flags_leave_out(model):
    prompts = {"prompts": {"query": "ask: ", "document": ""}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert prefixes(model, "ask: ", "") == []
    (text,) = prefixes(model, "", "")
    assert "no prefix stands before each query" in text
    assert 'set `query_prefix="ask: "`' in text


@pytest.mark.parametrize("name", ["intfloat/e5-base-v2", "multilingual-e5-small", "my_E5"])
def test_e5_without_its_prefixes(model, name):
    assert len(prefixes(model, "", "", name=name)) == 2
    assert prefixes(model, "query: ", "passage: ", name=name) == []


@pytest.mark.parametrize("name", ["bge5", "intfloat/e5-mistral-7b-instruct", "base"])
def test_names_that_are_not_e5s(model, name):
    assert prefixes(model, "", "", name=name) == []


def test_what_a_model_was_made_from_counts_too(model):
    config = json.loads((model / "config.json").read_text())
    config["_name_or_path"] = "intfloat/e5-small"
    (model / "config.json").write_text(json.dumps(config))
    assert len(prefixes(model, "", "passage: ")) == 1


def test_lengths_that_the_folder_takes_away_and_flags_leave(model):
    read = folder.read(str(model))
    assert read.normalize
    assert [
        findings.normalization(read, *each) for each in ((None, "dot"), (False, "cosine"))
    ] == [
        [],
        [],
    ]
    (doubt,) = findings.normalization(read, False, "dot")
    assert "`similarity=cosine`" in doubt.text


def test_memory_that_will_not_do(planned, silent):
    report = planned.check(silent)
    assert findings.memory(report.device, report.host) == []
    device = dataclasses.replace(report.device, room=report.device.params)
    host = dataclasses.replace(report.host, free=0)
    texts = [doubt.text for doubt in findings.memory(device, host)]
    assert ["`batch_tokens`" in texts[0], "`host_checkpoints`" in texts[1]] == [True, True]


def test_batches_that_had_to_be_halved():
    assert findings.halved(64, 64) == []
    (doubt,) = findings.halved(1024, 256)
    assert "set `batch_tokens=256`" in doubt.text


def test_pins_that_cannot_be_linked(tmp_path):
    assert findings.pins(str(tmp_path / "later"), tmp_path / "out" / "pins") == []
    assert findings.pins("gs://bucket/run", tmp_path) == []
    (doubt,) = findings.pins("/proc", tmp_path)
    assert f"`pin_dir={tmp_path}" in doubt.text


def test_errors_stand_last_and_are_counted(planned, silent):
    planned.texts["query_max_len"] = 3
    planned.save(words(np.full((14, 4), np.nan, np.float32)), step=8)
    *_, verdict, first, second = lines(planned.check(silent))
    assert verdict == "1 error and 1 warning"
    assert (first[:8], second[:6]) == ("warning:", "error:")


# The sample


def judged_set(store, qrels, queries):
    """A set whose documents are named by their rows; other documents are missing."""
    documents = {document for grades in qrels.values() for document in grades}
    rows = {document: int(document) for document in documents if document.isdigit()}
    judgments = Judgments.from_qrels(qrels, tuple(qrels), rows)
    return EvalSet("set", "series", store(queries), tuple(qrels), judgments)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def test_a_part_is_encoded_as_the_whole_is(store, silent):
    texts = [" ".join(LETTERS[: 1 + number * 7 % 25]) for number in range(90)]
    whole = store(texts)
    qrels = {f"q{number}": {str(number): 1} for number in range(0, 90, 3)}
    sample = choose(judged_set(store, qrels, texts[::3]), whole, size=40)
    table = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)

    def encode(params, ids, mask):
        return (params[ids] * mask[..., None]).sum(1)

    tower = Tower(encode, jax.devices()[:4], 64)
    params = place(table, jax.devices()[:4])
    vectors = matrix(tower.chunks(params, whole, silent()), whole.count)
    part = matrix(tower.chunks(params, sample.passages, silent()), sample.passages.count)
    np.testing.assert_allclose(part, vectors[sample.passages.places], rtol=1e-6)


def test_each_query_of_a_sample_has_its_best_passage_in_it(store):
    texts = [f"{a} {b}" for a in LETTERS for b in LETTERS[:8]]
    qrels = {
        f"q{number}": {str(2 * number): 1, str(2 * number + 1): 2, "outside:x": 3, "0": 0}
        for number in range(100)
    }
    corpus = store(texts)
    sample = choose(judged_set(store, qrels, texts[:100]), corpus)
    assert (sample.queries.count, sample.passages.count) == (64, 64)
    asked, places = sample.queries.places, sample.passages.places
    judged = sample.judgments
    best = judged.grade == 2
    assert judged.query[best].tolist() == list(range(64))
    np.testing.assert_array_equal(places[judged.row[best]], 2 * asked + 1)
    assert (asked.min(), asked.max()) == (0, 99)


def test_what_is_left_of_a_sample_is_from_all_over_the_corpus(store):
    corpus = store([f"{a} {b}" for a in LETTERS for b in LETTERS])
    sample = choose(judged_set(store, {"q0": {"5": 1}}, ["a"]), corpus)
    places = np.sort(sample.passages.places)
    assert len(set(places.tolist())) == 64
    assert 5 in places
    assert np.diff(places).max() < 2 * corpus.count / 63


def test_a_set_without_an_answer_in_the_corpus_is_not_ranked(store):
    corpus = store(["a", "b"])
    sample = choose(judged_set(store, {"q0": {"outside:x": 1}}, ["a"]), corpus)
    assert (sample.queries.count, sample.passages.count) == (1, 2)
    vectors = np.eye(2, dtype=np.float32)
    assert rank(sample, vectors[:1], vectors, "dot", "float32") is None


def ranked(store, queries, count=64):
    corpus = store([f"{a} {b}" for a in LETTERS for b in LETTERS[:4]])
    qrels = {f"q{number}": {str(number): 1} for number in range(count)}
    sample = choose(judged_set(store, qrels, ["a b"] * count), corpus)
    passages = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)
    order = np.argsort(sample.passages.places)  # passage n answers query n
    return rank(sample, queries(passages[order][:count]), passages, "cosine", "float32")


def test_chance_is_what_shuffling_gives(store):
    good = ranked(store, lambda answers: answers)
    assert good.mean == 1
    by_hand = (1 / np.log2(np.arange(2, 12))).sum() / 64
    assert good.chance == pytest.approx(by_hand, rel=0.1)
    assert good.chance < good.luck < 0.2
    assert findings.by_chance("set", good, 64) == []
    rng = np.random.default_rng(2)
    blind = ranked(store, lambda answers: rng.normal(size=answers.shape).astype(np.float32))
    assert len(findings.by_chance("set", blind, 64)) == 1


def test_of_too_few_queries_nothing_is_concluded(store):
    blind = ranked(store, lambda answers: -answers, count=8)
    assert (blind.mean, blind.luck) == (0, 1)
    assert findings.by_chance("set", blind, 64) == []


def test_likeness_is_the_mean_cosine_of_two():
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert findings.likeness(vectors) == pytest.approx((0 + 2 * np.sqrt(0.5)) / 3)
    assert findings.likeness(vectors[:1]) == 0


# The time


def test_seconds_are_of_the_batches_that_there_are():
    timed = {(32, 8): Timed(1.0, 0.5, 4), (8, 32): Timed(2.0, 1.0, 4)}
    shapes = Counter({(32, 8): 3, (8, 32): 1, (16, 16): 2, (8, 8): 1})
    tower = Pace(shapes, timed)
    rates = 0.5 / 256, 1.0 / 256
    between = rates[0] + (16 - 8) / (32 - 8) * (rates[1] - rates[0])
    expected = 3 * 0.5 + 1.0 + 2 * 256 * between + 64 * rates[0]
    assert tower.seconds(shapes) == pytest.approx(expected)
    assert tower.untried == 2


def test_a_busy_machine_is_told(planned, silent):
    assert timing.busy(lambda: (2.0, 0.0, 0.0), cores=8) is None
    assert timing.busy(lambda: (12.0, 0.0, 0.0), cores=8) == 1.5
    report = planned.check(silent)
    times = dataclasses.replace(report.times, busy=1.5)
    text = "\n".join(lines(dataclasses.replace(report, times=times)))
    assert "uncertain       other work had 1.5 processes a core" in text


def test_a_tower_tells_the_shapes_it_will_run(store, silent):
    texts = store([" ".join(LETTERS[: 1 + number * 7 % 25]) for number in range(300)])
    encode = lambda params, ids, mask: mask.sum(1, keepdims=True)  # noqa: E731
    tower, ran = Tower(encode, jax.devices()[:2], 256), Counter()
    run_it = tower.run

    def counting(params, ids, lengths):
        ran[(ids.shape[0] * ids.shape[1], ids.shape[2])] += 1
        return run_it(params, ids, lengths)

    tower.run = counting
    list(tower.chunks({}, texts, silent()))
    assert len(ran) > 1
    assert ran == tower.shapes(texts)
